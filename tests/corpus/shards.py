"""Tar shards and tables that are odd or broken, with the rows that must come out of them."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.rows import Status
from tests.support.corpora import jpeg, tar_bytes

Expected = dict[str, Status]
"""Image id to the status of its row."""
OK, BROKEN = Status.OK, Status.BROKEN_SHARD


def members(count: int) -> dict[str, bytes]:
    return {f"{number}.jpg": jpeg(number) for number in range(count)}


def tar_with(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def regular(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), content


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


def zeroed(data: bytes, start: int, size: int) -> bytes:
    return data[:start] + bytes(size) + data[start + size :]


def large_header(size: int) -> bytes:
    """An extended header of so many bytes, which tarfile would read into memory."""
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"comment": "x" * size}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return file.getvalue()


def not_utf8() -> bytes:
    """An extended header that names its character set in bytes that are no UTF-8."""
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"hdrcharset": "0123456789"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return file.getvalue().replace(b"0123456789", b"012345678\xe9")


def odd_bytes(whole: bytes, second_header: int) -> dict[str, tuple[bytes, Expected]]:
    """A tar of three members with blocks of zeros, appended, with a large header, and compressed."""
    return {
        "appended.tar": (whole + tar_bytes({"4.jpg": jpeg(4)}), {
            **{f"appended.tar/{name}": OK for name in members(3)}, "appended.tar/4.jpg": OK,
        }),
        "header-zeroed.tar": (
            zeroed(whole, second_header, 512), {"header-zeroed.tar/0.jpg": OK, "header-zeroed.tar": BROKEN},
        ),
        "member-zeroed.tar": (
            zeroed(whole, second_header, 512 + -(-len(jpeg(1)) // 512) * 512),
            {"member-zeroed.tar/0.jpg": OK, "member-zeroed.tar/2.jpg": OK},
        ),
        "large-header.tar.gz": (gzip.compress(large_header(100_000_000)), {"large-header.tar.gz": BROKEN}),
        "packed.tar.bz2": (bz2.compress(whole), {f"packed.tar.bz2/{name}": OK for name in members(3)}),
        "packed.TXZ": (lzma.compress(whole), {f"packed.TXZ/{name}": OK for name in members(3)}),
        "packed.tar.zst": (pa.compress(whole, "zstd", asbytes=True), {
            f"packed.tar.zst/{name}": OK for name in members(3)
        }),
        "cut.tar.zst": (pa.compress(whole, "zstd", asbytes=True)[:-300], {"cut.tar.zst": BROKEN}),
    }  # fmt: skip


def odd_tars() -> dict[str, tuple[bytes, Expected]]:
    """File name to its bytes and the rows expected."""
    whole = tar_bytes(members(3))
    one = tar_bytes({"0.jpg": jpeg(0)})
    second_header = len(one) // 10240 * 10240 and 512 + -(-len(jpeg(0)) // 512) * 512
    cut_in_second = whole[: second_header + 512 + 100]
    return {
        "good.tar": (whole, {f"good.tar/{name}": OK for name in members(3)}),
        "nothing.tar": (b"", {"nothing.tar": BROKEN}),
        "no-members.tar": (tar_bytes({}), {"no-members.tar": Status.NO_IMAGES}),
        "no-images.tar": (
            tar_bytes({"a.txt": b"x", "b.json": b"{}"}), {"no-images.tar": Status.NO_IMAGES},
        ),
        "cut.tar": (cut_in_second, {"cut.tar/0.jpg": OK, "cut.tar": BROKEN}),
        "no-end.tar": (whole[: second_header], {"no-end.tar/0.jpg": OK, "no-end.tar": BROKEN}),
        "header-damaged.tar": (
            flipped(whole, second_header + 10), {"header-damaged.tar/0.jpg": OK, "header-damaged.tar": BROKEN},
        ),
        "page.tar": (b"<html>404</html>" * 100, {"page.tar": BROKEN}),
        "links.tar": (
            tar_with(
                special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), special("hard.jpg", tarfile.LNKTYPE, "real.jpg"),
                special("device.jpg", tarfile.CHRTYPE), special("pipe.jpg", tarfile.FIFOTYPE),
                special("folder.jpg", tarfile.DIRTYPE), regular("real.jpg", jpeg(1)),
            ),
            {"links.tar/real.jpg": OK},
        ),
        "paths.tar": (
            tar_with(regular("/etc/absolute.jpg", jpeg(1)), regular("../../outside.jpg", jpeg(2))),
            {"paths.tar//etc/absolute.jpg": OK, "paths.tar/../../outside.jpg": OK},
        ),
        "twice.tar": (
            tar_with(regular("a.jpg", jpeg(1)), regular("a.jpg", jpeg(2)), regular("a.jpg", b"")),
            {"twice.tar/a.jpg": OK, "twice.tar/a.jpg#2": OK, "twice.tar/a.jpg#3": Status.EMPTY},
        ),
        "names.tar": (
            tar_with(*(regular(f"{name}.jpg", jpeg(1)) for name in ("caf\udce9", "日本", "l" * 300))),
            {"names.tar/caf\\xe9.jpg": OK, "names.tar/日本.jpg": OK, f"names.tar/{'l' * 300}.jpg": OK},
        ),
        "not-utf8.tar": (not_utf8(), {"not-utf8.tar": BROKEN}),
        "cut-gzip-header.tar": (b"\x1f\x8b\x08\x24k\x94\xfb\xf6", {"cut-gzip-header.tar": BROKEN}),
        "cut.tar.bz2.tar": (bz2.compress(whole)[:-500], {"cut.tar.bz2.tar": BROKEN}),
        **odd_bytes(whole, second_header),
        "hidden.tar": (tar_with(regular("._a.jpg", b"x"), regular("a.jpg", jpeg(1))), {"hidden.tar/a.jpg": OK}),
        "packed.tar.gz": (gzip.compress(whole), {f"packed.tar.gz/{name}": OK for name in members(3)}),
        "cut.tar.gz": (gzip.compress(whole)[:-2000], {"cut.tar.gz/0.jpg": OK, "cut.tar.gz": BROKEN}),
        "not-packed.tar.gz": (whole, {f"not-packed.tar.gz/{name}": OK for name in members(3)}),
    }  # fmt: skip


def write_table(path: Path, images: list[bytes | None], column: str = "image", row_group_size: int = 2) -> bytes:
    table = pa.table({column: pa.array(images, pa.binary()), "other": list(range(len(images)))})
    pq.write_table(table, path, row_group_size=row_group_size, compression="none", use_dictionary=False)
    return path.read_bytes()


def damage_second_group(path: Path) -> bytes:
    """Overwrite the page header of the second row group's image column."""
    data = path.read_bytes()
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    return data[:start] + b"\xff" * 40 + data[start + 40 :]


def odd_tables(folder: Path) -> dict[str, tuple[bytes, Expected]]:
    """File name to its bytes and the rows expected; ``good.parquet`` is the first by name that a job looks into."""
    make: Callable[..., bytes] = lambda *args, **options: write_table(folder / "made.parquet", *args, **options)  # noqa: E731
    good = [jpeg(number) for number in range(5)]
    many = make([good[0]] * 97, row_group_size=97)
    whole = make(good)
    return {
        "a-good.parquet": (whole, {f"a-good.parquet/{number}": OK for number in range(5)}),
        "damaged.parquet": (
            damage_second_group(folder / "made.parquet"),
            {"damaged.parquet/2-3": BROKEN} | {f"damaged.parquet/{number}": OK for number in (0, 1, 4)},
        ),
        "cut.parquet": (whole[:-100], {"cut.parquet": BROKEN}),
        "nothing.parquet": (b"", {"nothing.parquet": BROKEN}),
        "page.parquet": (b"<html>404</html>", {"page.parquet": BROKEN}),
        "no-rows.parquet": (make([]), {"no-rows.parquet": Status.NO_IMAGES}),
        "nulls.parquet": (
            make([good[0], None, b""]),
            {"nulls.parquet/0": OK, "nulls.parquet/1": Status.EMPTY, "nulls.parquet/2": Status.EMPTY},
        ),
        "many-nulls.parquet": (
            table_of_nulls(folder / "made.parquet", 50_000_000), {"many-nulls.parquet/0-49999999": BROKEN},
        ),
        "no-more-rows.parquet": (
            claiming(many, 97, 1000),
            {f"no-more-rows.parquet/{number}": OK for number in range(97)} | {"no-more-rows.parquet/97-999": BROKEN},
        ),
        "claims.parquet": (claiming(many, 97, 2**40), {f"claims.parquet/0-{2**40 - 1}": BROKEN}),
        "no-image-column.parquet": (table_of_numbers(folder / "made.parquet"), {"no-image-column.parquet": BROKEN}),
    }  # fmt: skip


def claiming(table: bytes, rows: int, claimed: int) -> bytes:
    """A table whose footer says ``claimed`` wherever it said ``rows``."""
    size = int.from_bytes(table[-8:-4], "little")
    footer = table[-8 - size : -8].replace(thrift_number(rows), thrift_number(claimed))
    return table[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def thrift_number(number: int) -> bytes:
    """A number as the footer has it: doubled, in groups of seven bits."""
    digits, rest = [], 2 * number
    while rest > 0x7F:
        digits.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*digits, rest])


def table_of_nulls(path: Path, rows: int) -> bytes:
    pq.write_table(pa.table({"image": pa.nulls(rows, pa.binary())}), path, row_group_size=rows)
    return path.read_bytes()


def table_of_numbers(path: Path) -> bytes:
    pq.write_table(pa.table({"image": [1, 2, 3]}), path)
    return path.read_bytes()
