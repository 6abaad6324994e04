"""Corpora for tests: the same images as tar shards, as Parquet tables and as a folder."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cliper.decode import decode_rgb
from cluster.corpus.limits import Limits


def decode_image(data: bytes, max_pixels: int = Limits.max_pixels) -> np.ndarray:
    """The pixels of an image file as the job decodes them, uint8 [height, width, 3]."""
    return np.asarray(decode_rgb(data, max_pixels))


def jpeg(seed: int, size_hw: tuple[int, int] | None = None) -> bytes:
    """An image with smooth colours and a few squares; every third one is upright."""
    rng = np.random.default_rng(seed)
    height, width = size_hw or ((60, 90) if seed % 3 else (90, 60))
    y, x = np.mgrid[:height, :width] / 25
    waves = [np.sin(x * a + y * b + c) for a, b, c in rng.uniform(0.2, 2, (3, 3))]
    pixels = ((np.stack(waves, axis=-1) + 1) * 127).astype(np.uint8)
    for top, left in rng.integers(0, 45, (3, 2)):
        pixels[top : top + 15, left : left + 15] = rng.integers(0, 256, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def sample_images(count: int) -> dict[str, bytes]:
    return {f"{index:05}.jpg": jpeg(index) for index in range(count)}


def tar_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def shards_of(images: dict[str, bytes], per_shard: int) -> list[dict[str, bytes]]:
    names = sorted(images)
    return [
        {name: images[name] for name in names[start : start + per_shard]} for start in range(0, len(names), per_shard)
    ]


def write_tars(folder: Path, images: dict[str, bytes], per_shard: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(shards_of(images, per_shard)):
        (folder / f"{number:05}.tar").write_bytes(tar_bytes(members))
    return folder


def write_tables(folder: Path, images: dict[str, bytes], per_shard: int, hugging_face: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(shards_of(images, per_shard)):
        if hugging_face:
            column = pa.array([{"bytes": content, "path": name} for name, content in members.items()])
        else:
            column = pa.array(list(members.values()), pa.binary())
        table = pa.table({"image": column, "caption": [f"image {name}" for name in members]})
        pq.write_table(table, folder / f"{number:05}.parquet", row_group_size=3)
    return folder


def write_folder(folder: Path, images: dict[str, bytes]) -> Path:
    for name, content in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
