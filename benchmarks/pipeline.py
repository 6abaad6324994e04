"""Speed of the Ray job around the models: ``python -m benchmarks.pipeline --image-size 500x375 4000x3000``.

For every size of images: how many images a second the data plane moves (read, prepare, encode, write, with a model that
takes no time), beside what the same cores reach with Pillow's decoding and the two resizes alone; CPU time in the
labelling process; and bytes that went through the object store. With ``--demo``: the whole job with the demo models,
beside the same models without Ray.
"""

import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import ray
import tyro
from PIL import Image
from ray._private import internal_api
from rich.console import Console
from rich.table import Table

from benchmarks.idle import Idle
from benchmarks.images import parse_size
from cliper.decode import decode_rgb
from cliper.models import DEMO
from cliper.preprocess import InputSpec
from cliper.settings import VIT_L_14, MethodSettings
from cliper.specs import SegmenterSpec, best_device
from cliper.vocabulary import VocabularyRequest
from cluster import session
from cluster.corpus.inputs import open_input
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import list_corpus
from cluster.encoders import AnnotationEncoder
from cluster.options import ClusterOptions
from cluster.output.folder import Output
from cluster.run import Pipeline, run_pipeline
from cluster.storage import open_location
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from schemas.manifest import Manifest
from schemas.vocabulary import VocabularyClass

PUBLISHED_INPUTS = InputSpec(shorter_side_px=336, patch_size_px=14, diffusion_side_px=512)
"""What ViT-L/14 and Stable Diffusion 2.1-base read."""
IMAGES_PER_SHARD = 100
DEMO_FRACTION = 8
"""The demo models label so many times fewer images than the idle model."""


def main(
    image_size: tuple[str, ...] = ("500x375", "4000x3000"), images: int = 100, classes: int = 21, demo: bool = False
) -> None:
    """Measure and print.

    Args:
        image_size: Sizes of images, WIDTHxHEIGHT; all are measured in the same run.
        images: Images of the largest size in the smaller of two runs. The larger run has twice as many; the difference
            counts. Smaller sizes get up to 16 times as many images, so that start-up matters as little.
        classes: Size of the vocabulary.
        demo: Also measure the job with the demo models.
    """
    console = Console()
    table = Table("image", "images/s", "bare images/s", "share", "actor CPU ms/image", "object store MB/image")
    sizes = [parse_size(size) for size in image_size]
    largest = max(height * width for height, width in sizes)
    for height, width in sizes:
        count = images * min(16, largest // (width * height))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            files = write_shards(folder, 2 * count, height, width)
            bare = bare_rate(files)
            idle = Idle(PUBLISHED_INPUTS, classes, folder / "clock")
            rate, store_mb = measure_job(idle, count, folder, console)
            before, own, batch = np.loadtxt(idle.clock).T
            actor_cpu_s = (before[-1] - before[0] - own[:-1].sum()) / batch[:-1].sum()
            if demo:
                measure_demo(files, classes, count // DEMO_FRACTION, folder, console)
            ray.shutdown()
        figures = (f"{rate:.2f}", f"{bare:.2f}", f"{rate / bare:.0%}", f"{1e3 * actor_cpu_s:.2f}", f"{store_mb:.2f}")
        table.add_row(f"{width} x {height}", *figures)
    console.print(table)


def write_shards(folder: Path, count: int, height_px: int, width_px: int) -> list[Path]:
    """Write ``folder/corpus``: tar shards of soft noise as JPEG files, about as large as those of photographs.

    Returns:
        The file of each image. There are only a few, repeated.
    """
    (folder / "corpus").mkdir()
    drawn = [folder / f"{number}.jpg" for number in range(16)]
    for number, path in enumerate(drawn):
        noise = np.random.default_rng(number).integers(0, 256, (height_px // 4, width_px // 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.BICUBIC).save(path, quality=85)
    images = [drawn[number % len(drawn)] for number in range(count)]
    for first in range(0, count, IMAGES_PER_SHARD):
        with tarfile.open(folder / f"corpus/{first:06}.tar", "w") as shard:
            for number, path in enumerate(images[first : first + IMAGES_PER_SHARD], start=first):
                shard.add(path, f"{number:06}.jpg")
    return images


def bare_rate(images: list[Path]) -> float:
    """Images per second of Pillow's decoding and the two resizes on all cores, without anything around."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        list(processes.map(decode_and_resize, images[:100]))  # start the processes
        started = time.monotonic()
        list(processes.map(decode_and_resize, images, chunksize=IMAGES_PER_SHARD))
        return len(images) / (time.monotonic() - started)


def decode_and_resize(path: Path) -> None:
    PUBLISHED_INPUTS.prepare(decode_rgb(path.read_bytes()), seed=0)


def measure_job(spec: SegmenterSpec, count: int, folder: Path, console: Console) -> tuple[float, float]:
    """Run the job's pipeline over the first images of ``folder/corpus``. Start-up is excluded: the difference between
    two runs counts.

    Returns:
        Images per second, and MB per image through the object store.
    """
    cluster = ClusterOptions()
    resources = session.start(cluster)
    clocks = []
    for number in (count, 2 * count):
        output = Output(open_location(str(folder / f"{type(spec).__name__}-{number}"), "--output"))
        corpus = list_corpus(open_input(str(folder / "corpus")), "auto", output.location, number)
        prepare = Preparer(spec.inputs, corpus.limits)
        pipeline = Pipeline(
            corpus,
            prepare,
            spec,
            AnnotationEncoder(MethodSettings(**vars(VIT_L_14)), (), ()),
            Manifest({}),
            output,
            cluster,
        )
        before = np.array([time.monotonic(), stored_bytes()])
        run_pipeline(pipeline, resources, console)
        clocks.append(np.array([time.monotonic(), stored_bytes()]) - before)
    seconds, stored = clocks[1] - clocks[0]
    return count / seconds, stored / count / 1e6


def stored_bytes() -> int:
    """Bytes of all objects that were ever put into the object store of this Ray session."""
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.cumulative_created_bytes)


def measure_demo(files: list[Path], classes: int, count: int, folder: Path, console: Console) -> None:
    """Print images per second of the demo models in the job, and without Ray."""
    models = find_models(MethodOptions(clip=DEMO, diffusion=DEMO))
    words = tuple(VocabularyClass(f"class {number}", (f"class {number}",)) for number in range(classes))
    spec = models.spec(VocabularyRequest(words, (), ("{}",), ready=None).embed(models.clip, "release"), "fp32")
    rate, _ = measure_job(spec, count, folder, console)
    cliper = spec.build(best_device())
    prepared = [spec.inputs.prepare(decode_rgb(path.read_bytes()), seed) for seed, path in enumerate(files[:32])]
    cliper.predict(prepared[:2])
    started = time.monotonic()
    for image in prepared:
        cliper.predict([image])
    alone = len(prepared) / (time.monotonic() - started)
    console.print(f"demo models: {rate:.2f} images/s in the job, {alone:.2f} without Ray")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
