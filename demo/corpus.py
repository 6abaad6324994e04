"""A corpus of drawn pictures as a user would have it: JPEG files in tar shards."""

import io
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image

from demo.world.scene import draw

HEIGHT_PX, WIDTH_PX = 240, 320
JPEG_QUALITY = 92


def jpeg_of_seed(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw(seed, HEIGHT_PX, WIDTH_PX).image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_corpus(folder: Path, seeds: range, pictures_per_shard: int) -> None:
    """Draw pictures into ``shard-00000.tar`` and so on, members named by seed (WebDataset style).

    Args:
        folder: made if missing; shards of the same name are replaced.
        seeds: one picture each.
        pictures_per_shard: the last shard may hold fewer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as artists:
        jpegs = artists.map(jpeg_of_seed, seeds, chunksize=16)
        for number, first in enumerate(range(0, len(seeds), pictures_per_shard)):
            with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as shard:
                for seed in seeds[first : first + pictures_per_shard]:
                    data = next(jpegs)
                    member = tarfile.TarInfo(f"{seed:06d}.jpg")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))


def seed_of(image_id: str) -> int:
    """The seed of a picture's row."""
    return int(Path(image_id).stem)
