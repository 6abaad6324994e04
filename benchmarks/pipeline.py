"""Speed of the Ray job around the models: ``python -m benchmarks.pipeline --image-size 500x375 4000x3000``.

For every size of images: how many images a second the data plane moves (read, prepare, encode, write, with a model that
takes no time), beside what the same cores reach with Pillow's decoding and the two resizes alone; CPU time in the
labelling process; and bytes that went through the object store. With ``--demo``: the whole job with the demo models,
beside the same models without Ray.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import ray
import torch
import tyro
from PIL import Image
from ray._private import internal_api
from rich.console import Console
from rich.table import Table

from benchmarks.idle import BATCH_SIZE, IdleSpec
from cliper.models import DEMO
from cliper.preprocess import InputSpec, Prepared
from cluster import session
from cluster.actors import CliperSpec, SegmenterSpec
from cluster.corpus.decode import decode_rgb
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import list_corpus
from cluster.encoders import AnnotationEncoder
from cluster.output.folder import Output
from cluster.run import Pipeline, run_pipeline
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.options import MethodOptions
from jobs.common.request import VocabularyRequest, find_models
from schemas.manifest import Manifest, labelling_manifest
from schemas.vocabulary import VocabularyClass

PUBLISHED_INPUTS = InputSpec(shorter_side_px=336, patch_size_px=14, diffusion_side_px=512)
"""What ViT-L/14 and Stable Diffusion 2.1-base read."""
IMAGES_PER_SHARD = 100
DEMO_FRACTION = 8
"""The demo models label so many times fewer images than the idle model."""


@dataclass(frozen=True)
class PipelineOptions:
    """What to measure."""

    image_size: tuple[str, ...] = ("500x375", "4000x3000")
    """Sizes of images, WIDTHxHEIGHT; all are measured in the same run."""
    images: int = 100
    """Images of the largest size in the smaller of two runs. The larger run has twice as many; the difference counts.
    Smaller sizes get up to 16 times as many images, so that start-up matters as little."""
    classes: int = 21
    """Size of the vocabulary."""
    demo: bool = False
    """Also measure the job with the demo models."""


def main(options: PipelineOptions) -> None:
    """Measure and print."""
    console = Console()
    models = find_models(MethodOptions(clip=DEMO, diffusion=DEMO))
    classes = tuple(VocabularyClass(f"class {number}", (f"class {number}",)) for number in range(options.classes))
    vocabulary = VocabularyRequest(classes, (), ("{}",), ready=None)
    job = models.spec(vocabulary.embed(models.clip), "fp32")
    manifest = labelling_manifest({}, vocabulary.manifest(), models.manifest(), asdict(models.settings))
    table = Table("image", "images/s", "bare images/s", "share", "actor CPU ms/image", "object store MB/image")
    sizes = [tuple(map(int, size.split("x"))) for size in options.image_size]
    largest = max(width * height for width, height in sizes)
    for width, height in sizes:
        count = options.images * min(16, largest // (width * height))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_jpegs(folder / "corpus", 2 * count, height, width)
            bare = bare_rate(folder / "corpus")
            session.start(ClusterOptions())
            rate, actor_cpu_ms, store_mb = data_plane(count, options.classes, manifest, folder, console)
            if options.demo:
                measure_demo(job, manifest, folder, count // DEMO_FRACTION, console)
            ray.shutdown()
        figures = (f"{rate:.2f}", f"{bare:.2f}", f"{rate / bare:.0%}", f"{actor_cpu_ms:.2f}", f"{store_mb:.2f}")
        table.add_row(f"{width} x {height}", *figures)
    console.print(table)


def data_plane(
    count: int, classes: int, manifest: Manifest, folder: Path, console: Console
) -> tuple[float, float, float]:
    """Figures over a local corpus, start-up excluded: the difference between two runs.

    Returns:
        Images per second; per image, ms of CPU time of the labelling process and MB through the object store.
    """
    seconds, stored = [], []
    for number in (count, 2 * count):
        clock = folder / f"clock-{number}"
        before = stored_bytes()
        idle = IdleSpec(PUBLISHED_INPUTS, classes, str(clock))
        seconds.append(run_job(idle, manifest, folder, number, console))
        stored.append(stored_bytes() - before)
    lines = [tuple(map(float, line.split())) for line in clock.read_text().splitlines()]
    counted = sum(images for _, _, images in lines[:-1])
    cpu = lines[-1][0] - lines[0][0] - sum(own for _, own, _ in lines[:-1])
    rate, store_mb = count / (seconds[1] - seconds[0]), (stored[1] - stored[0]) / count / 1e6
    return rate, 1e3 * cpu / counted, store_mb


def stored_bytes() -> int:
    """Bytes of all objects that were ever put into the object store of this Ray session."""
    state = internal_api.get_state_from_address(None)
    return int(internal_api.get_memory_info_reply(state).store_stats.cumulative_created_bytes)


def bare_rate(corpus: Path) -> float:
    """Images per second of Pillow's decoding and the two resizes on all cores, without anything around."""
    shards = sorted(corpus.glob("*.tar"))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        list(processes.map(partial(count_prepared, limit=1), shards * 4))  # start the processes
        started = time.monotonic()
        counts = list(processes.map(count_prepared, shards))
        return sum(counts) / (time.monotonic() - started)


def count_prepared(path: Path, limit: int | None = None) -> int:
    return sum(1 for _ in prepared_images(path, PUBLISHED_INPUTS, limit))


def prepared_images(path: Path, inputs: InputSpec, limit: int | None) -> Iterator[Prepared]:
    """A shard's first images, decoded and resized."""
    with tarfile.open(path) as shard:
        for seed, member in enumerate(shard.getmembers()[:limit]):
            file = shard.extractfile(member)
            assert file is not None, "members are files"
            yield inputs.prepare(decode_rgb(file.read()), seed)


def measure_demo(spec: CliperSpec, manifest: Manifest, folder: Path, count: int, console: Console) -> None:
    """Print images per second of the demo models in the job, and without Ray."""
    seconds = [run_job(spec, manifest, folder, number, console) for number in (count, 2 * count)]
    cliper = spec.build(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    prepared = list(prepared_images(min((folder / "corpus").glob("*.tar")), spec.inputs, limit=32))
    cliper.predict(prepared[:2])
    started = time.monotonic()
    for image in prepared:
        cliper.predict([image])
    alone = len(prepared) / (time.monotonic() - started)
    console.print(f"demo models: {count / (seconds[1] - seconds[0]):.2f} images/s in the job, {alone:.2f} without Ray")


def write_jpegs(folder: Path, count: int, height_px: int, width_px: int) -> None:
    """Soft noise as JPEG files in tar shards; about as many bytes as photographs have. A few images, repeated."""
    folder.mkdir()
    jpegs = []
    for number in range(min(count, 16)):
        noise = np.random.default_rng(number).integers(0, 256, (height_px // 4, width_px // 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        jpegs.append(buffer.getvalue())
    for first in range(0, count, IMAGES_PER_SHARD):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as shard:
            for number in range(first, min(first + IMAGES_PER_SHARD, count)):
                data = jpegs[number % len(jpegs)]
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))


def run_job(spec: SegmenterSpec, manifest: Manifest, folder: Path, count: int, console: Console) -> float:
    """Seconds of the job's pipeline over so many images of ``folder/corpus``."""
    output = Output(open_location(str(folder / f"{type(spec).__name__}-{count}"), "--output"))
    listed = list_corpus(open_location(str(folder / "corpus"), "--input"), "auto", output.location, count)
    output.begin(manifest, overwrite=True)
    cluster = ClusterOptions(batch_size=BATCH_SIZE)
    resources = session.start(cluster)
    prepare = Preparer(spec.inputs, listed.limits)
    started = time.monotonic()
    run_pipeline(Pipeline(listed, prepare, spec, AnnotationEncoder(), manifest, output, cluster), resources, console)
    return time.monotonic() - started


if __name__ == "__main__":
    main(tyro.cli(PipelineOptions, description=__doc__))
