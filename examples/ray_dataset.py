"""Label a Ray Data dataset of your own.

The dataset is eight drawn landscapes here, as arrays, and the models are the demo's. For files of your own, use
``ray.data.read_binary_files(..., include_paths=True)`` and leave ``clip`` and ``diffusion`` out; on GPUs add
``num_gpus=1`` to ``map_batches``.
"""

import sys

import ray

from cliper import Labeler
from cluster.labeler import LabelerActor
from demo.world.scene import draw

WORDS = ["sky", "grass", "sea", "tree: tree; tall tree", "house"]


def main(output: str) -> None:
    """Label the images and write a Parquet dataset.

    Args:
        output: folder for it.
    """
    ds = ray.data.from_items([{"path": f"{seed}.png", "image": draw(seed, 120, 160).image} for seed in range(8)])

    labeler = Labeler(WORDS, clip="demo", diffusion="demo")
    ds = ds.map_batches(LabelerActor, fn_constructor_args=[labeler], batch_size=4, concurrency=1)
    ds.drop_columns(["image"]).write_parquet(output)

    for row in ray.data.read_parquet(output).sort("path").take_all():
        print(row["path"], [WORDS[entry["category_id"] - 1] for entry in row["annotations"]])


if __name__ == "__main__":
    main(*sys.argv[1:])
