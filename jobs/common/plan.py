"""What a job is going to do, how long it may take and what it may cost."""

import csv
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cliper.models import split_revision
from cluster.corpus.sources import Corpus, read_shard
from cluster.sizing import Cluster, Resources
from jobs.common.options import MethodOptions
from schemas.errors import RequestError

RESULTS = Path(__file__).parents[2] / "benchmarks/results.csv"


@dataclass(frozen=True)
class PlanOptions:
    """Looking ahead."""

    plan: bool = False
    """Print how the job would use the cluster, how long it may take and what it may cost, and stop."""
    actor_images_per_second: float | None = None
    """For --plan: images that one actor labels in a second (default: as benchmarks/results.csv has it, if it does)."""
    actor_price_per_hour: float | None = None
    """For --plan: what an hour of the machine costs that one actor uses, in any currency."""

    def check(self) -> None:
        """Raises RequestError: a number makes no sense, or is given without --plan."""
        for name in ("actor_images_per_second", "actor_price_per_hour"):
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value is not None and not value > 0:
                raise RequestError(f"{flag} must be above 0, not {value}")
            if value is not None and not self.plan:
                raise RequestError(f"{flag} belongs to --plan")


@dataclass(frozen=True)
class Speed:
    """Images per second of one actor, and where the number comes from."""

    images_per_second: float
    source: str


def show_plan(
    options: PlanOptions, method: MethodOptions, corpus: Corpus, resources: Resources, batch_size: int, console: Console
) -> None:
    """Print what a job would do. One shard is read, to count its images.

    Raises:
        OSError: the storage failed.
    """
    cluster = Cluster.now()
    table = Table(title="Plan", title_justify="left", show_header=False)
    decoding = int(cluster.memory_bytes // (corpus.limits.decode_memory_mb * 10**6))
    table.add_row("cluster now", f"nodes: {cluster.nodes}, CPU slots: {cluster.cpus:g}, GPUs: {cluster.gpus:g}")
    table.add_row("use", resources.sentence(cluster, batch_size))
    table.add_row("decoding", f"the memory there is now is enough for {decoding:,} tasks at a time")
    images, how = count_images(corpus)
    table.add_row("images", f"{images:,} ({how})")
    speed = expected_speed(options, method, on_gpu=bool(resources.gpus_per_actor))
    if speed is None:
        table.add_row("speed", "not measured for these models on such a device: give --actor-images-per-second")
    else:
        add_estimate(table, images, resources.actors, speed, options.actor_price_per_hour)
    console.print(table, highlight=False)


def add_estimate(table: Table, images: int, actors: int, speed: Speed, price_per_hour: float | None) -> None:
    """Rows with images per second, time and cost, computed from the speed of one actor."""
    together = actors * speed.images_per_second
    seconds = round(images / together)
    table.add_row("speed", f"{together:,.2f} images per second (computed: {actors} x {speed.source})")
    table.add_row("time", f"{timedelta(seconds=seconds)} (computed; starting machines and models not counted)")
    if price_per_hour is not None:
        table.add_row("cost", f"{seconds / 3600 * actors * price_per_hour:,.2f} (computed)")


def count_images(corpus: Corpus) -> tuple[int, str]:
    """How many images a corpus has, and how that is known. Of shards one in the middle is read."""
    if corpus.format == "folder":
        return len(corpus.shards), "counted"
    if all(shard.first_images is not None for shard in corpus.shards):
        return sum(shard.first_images or 0 for shard in corpus.shards), "counted"
    middle = corpus.shards[len(corpus.shards) // 2]
    count = sum(1 for _ in read_shard(corpus, middle))
    return count * len(corpus.shards), f"estimated: shards: {len(corpus.shards):,}, in {middle.name}: {count:,}"


def expected_speed(options: PlanOptions, method: MethodOptions, on_gpu: bool) -> Speed | None:
    """What was given, else the newest measurement of such models on such a device."""
    if options.actor_images_per_second is not None:
        return Speed(options.actor_images_per_second, "--actor-images-per-second")
    compensation = "none" if method.diffusion == "none" else method.compensation
    wanted = {
        "variant": "fast",
        "stage": "total",
        "device": "cuda" if on_gpu else "cpu",
        "clip": split_revision(method.clip)[0].replace("/", "-").partition(":")[0],
        "compensation": compensation,
    }
    if not RESULTS.is_file():
        return None
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if wanted.items() <= row.items()]
    if not rows:
        return None
    newest = max(rows, key=lambda row: (row["date"], -int(row["classes"])))
    machine = "a GPU" if on_gpu else "two CPU cores"
    source = f"benchmarks/results.csv, {newest['date']}, {machine}, {newest['classes']} classes"
    return Speed(float(newest["images_per_second"]), source)
