"""What is fuzzed. A target takes any bytes and raises only if there is something to mend."""

import contextlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from cluster.corpus.readers import Shard
from cluster.corpus.sources import Corpus, CorpusFormat, read_shard
from cluster.storage import open_location
from schemas.embeddings import VocabularyEmbeddings, embeddings_from_bytes, embeddings_to_bytes
from schemas.errors import DecodeError
from schemas.rows import Status
from schemas.vocabulary import parse_background, parse_vocabulary
from tests.corpus.images import odd_images
from tests.corpus.shards import odd_tables, odd_tars
from tests.support.corpora import decode_image

MAX_PIXELS = 2**22
"""Keeps a try short; larger images are refused as they are in a job."""
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def decode(data: bytes) -> None:
    """An image, or a DecodeError with a status and one line of reason."""
    try:
        pixels = decode_image(data, MAX_PIXELS)
    except DecodeError as error:
        failure = error
    else:
        check_pixels(pixels)
        return
    assert failure.status in set(Status) - {Status.OK}
    assert "\n" not in str(failure)


def check_pixels(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.size <= 3 * MAX_PIXELS


def tar(data: bytes) -> None:
    check_shard("tar", "fuzz.tar", data)


def table(data: bytes) -> None:
    check_shard("parquet", "fuzz.parquet", data)


def check_shard(kind: CorpusFormat, name: str, data: bytes) -> None:
    """Records with ids of their own, each with bytes or with a status and one line of reason."""
    (FOLDER / name).write_bytes(data)
    root = open_location(str(FOLDER), "--input")
    corpus, shard = Corpus(root, kind, ()), Shard(name, f"{root.path}/{name}")
    records = list(read_shard(corpus, shard))
    assert len({record.image_id for record in records}) == len(records)
    assert records[-1].shard_images == len(records)
    for record in records:
        record.image_id.encode("utf-8")
        assert (record.status == Status.OK) == bool(record.data)
        assert record.error is None or "\n" not in record.error


def vocabulary(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for parse in (parse_vocabulary, parse_background):
        with contextlib.suppress(ValueError):
            found = parse(text)
            assert len(set(found)) == len(found)


def embeddings(data: bytes) -> None:
    try:
        found = embeddings_from_bytes(data)
    except ValueError:
        return
    assert len(found.row_names) == len(found.classes) > 0
    assert np.isfinite(found.classes).all()
    assert embeddings_from_bytes(embeddings_to_bytes(found)).row_names == found.row_names


def some_embeddings() -> bytes:
    rows = np.eye(3, 8, dtype=np.float32)
    return embeddings_to_bytes(VocabularyEmbeddings(rows, ("a", "b", "b"), rows[:1], ("c",)))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "decode": decode, "tar": tar, "table": table, "vocabulary": vocabulary, "embeddings": embeddings,
}  # fmt: skip


@cache
def seeds(target: str) -> list[bytes]:
    """Inputs to begin with."""
    match target:
        case "decode":
            return [data for data, _ in odd_images().values()]
        case "tar":
            return [data for data, _ in odd_tars().values()]
        case "table":
            return [data for data, _ in odd_tables(FOLDER).values()]
        case "vocabulary":
            return [b"cat\nperson: man; woman\n", b"\xef\xbb\xbf# comment\n\ncat\ncat\n", b"a:\n", b":b\n"]
        case _:
            return [some_embeddings(), b""]
