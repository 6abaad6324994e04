"""The plan of a job: how it would use the cluster, how long it may take and what it may cost."""

import csv
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from cliper.asked import DECLARED, given_default
from cliper.models import split_revision
from cliper.settings import DIFFUSION_AFFINITY
from cluster.corpus.sources import Corpus, read_shard
from cluster.sizing import Cluster, Resources
from jobs.common.options import MethodOptions, PlanOptions

SPEEDS = Path(__file__).with_name("speeds.csv")
"""The newest rows of benchmarks/results.csv, one for each device, CLIP model and compensation."""
INPUT_SETTINGS = ("shorter_side_px", "windows", "scales", "flip")
"""The settings that say how much CLIP looks at."""


class Speed(NamedTuple):
    """Images per second of one actor, and the source of the number."""

    images_per_second: float
    source: str


def show_plan(
    options: PlanOptions, method: MethodOptions, corpus: Corpus, resources: Resources, batch_size: int, console: Console
) -> None:
    """Print the plan of a job. One shard is read to count its images.

    Raises:
        OSError: the storage failed.
    """
    cluster = Cluster.now()
    table = Table(title="Plan", title_justify="left", show_header=False)
    decoding = int(cluster.memory_bytes // corpus.limits.decode_memory_bytes)
    table.add_row("cluster now", f"nodes: {cluster.nodes}, CPU slots: {cluster.cpus:g}, GPUs: {cluster.gpus:g}")
    table.add_row("use", resources.sentence(cluster, batch_size))
    table.add_row("decoding", f"the memory available now is enough for {decoding:,} tasks at a time")
    images, how = count_images(corpus)
    table.add_row("images", f"{images:,} ({how})")
    speed = expected_speed(options, method, on_gpu=bool(resources.gpus_per_actor))
    if speed is None:
        table.add_row("speed", "not measured for these models on this kind of device: give --actor-images-per-second")
    else:
        together = resources.actors * speed.images_per_second
        seconds = round(images / together)
        table.add_row("speed", f"{together:,.2f} images per second (computed: {resources.actors} x {speed.source})")
        table.add_row("time", f"{timedelta(seconds=seconds)} (computed; without the start of machines and models)")
        if options.actor_price_per_hour is not None:
            cost = seconds / 3600 * resources.actors * options.actor_price_per_hour
            table.add_row("cost", f"{cost:,.2f} (computed)")
    console.print(table)


def count_images(corpus: Corpus) -> tuple[int, str]:
    """The number of images in a corpus, and how it was found. To estimate it, the middle shard is read."""
    if corpus.format == "folder":
        return len(corpus.shards), "counted"
    if all(shard.first_images is not None for shard in corpus.shards):
        return sum(shard.first_images or 0 for shard in corpus.shards), "counted"
    middle = corpus.shards[len(corpus.shards) // 2]
    count = sum(1 for _ in read_shard(corpus, middle))
    return count * len(corpus.shards), f"estimated: shards: {len(corpus.shards):,}, in {middle.name}: {count:,}"


def expected_speed(options: PlanOptions, method: MethodOptions, on_gpu: bool) -> Speed | None:
    """The speed that was given, else the newest measurement of these models on this kind of device, which was at the
    default size of CLIP's input.
    """
    if options.actor_images_per_second is not None:
        return Speed(options.actor_images_per_second, "--actor-images-per-second")
    settings = method.asked().settings
    if any(settings[setting.name] != given_default(setting) for setting in DECLARED if setting.name in INPUT_SETTINGS):
        return None
    wanted = {
        "device": "cuda" if on_gpu else "cpu",
        "clip": split_revision(method.clip)[0].replace("/", "-").partition(":")[0],
        "compensation": "product" if method.asked().compensation == "product" else "none",
    }
    if wanted["compensation"] == "product" and method.affinity != DIFFUSION_AFFINITY:
        return None
    machine = "a GPU" if on_gpu else "two CPU cores"
    with SPEEDS.open(newline="") as file:
        for row in csv.DictReader(file):
            if wanted.items() <= row.items():
                source = f"benchmarks/results.csv, {row['date']}, {machine}, {row['classes']} classes"
                return Speed(float(row["images_per_second"]), source)
    return None
