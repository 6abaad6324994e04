"""Speed of the whole Ray job: with the demo models, and of its data plane alone (read, decode, encode, write)."""

import io
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from cliper.models import DEMO
from cliper.pipeline import Annotation, Cliper
from cluster import session
from cluster.actors import Annotator, AnnotatorSpec, FittingBatches
from cluster.corpus.decode import decode_batch, decode_image
from cluster.corpus.sources import list_corpus
from cluster.output.folder import Output
from cluster.run import Plan, run_pipeline
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.options import MethodOptions
from jobs.common.request import VocabularyRequest, find_models
from schemas.manifest import Manifest
from schemas.rows import ROW_SCHEMA
from schemas.vocabulary import VocabularyClass

REGIONS_HW = (6, 8)
"""The idle actor's label map: so many rectangles, each of a random class."""
PICTURES_PER_SHARD = 100
WAIT_S = 0.025
BATCH_SIZE = 8


@dataclass(frozen=True)
class IdleSpec(AnnotatorSpec):
    """Builds an actor that labels without looking, so that what remains is everything around the model.

    Attributes:
        seconds_per_image: how long it waits for a device that is not there, without using the CPU.
    """

    seconds_per_image: float

    def build(self, device: torch.device) -> Cliper:
        return Idle(len(set(self.embeddings.row_names)), self.seconds_per_image)


class Idle(Cliper):
    """Rectangles of random classes, whatever the picture; one batch at a time, as on a GPU."""

    def __init__(self, classes: int, seconds_per_image: float) -> None:
        self.classes, self.seconds_per_image = classes, seconds_per_image
        self.device = Lock()

    @property
    def largest_batch(self) -> int:
        return BATCH_SIZE

    def annotate(
        self, images: Sequence[np.ndarray], seeds: Sequence[int], allowed: Any = None, noise: Any = None
    ) -> list[Annotation]:
        with self.device:
            time.sleep(self.seconds_per_image * len(images))
        attention, maps = torch.zeros(0, 0), torch.zeros(self.classes, 0, 0)
        found = []
        for image, seed in zip(images, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            regions = torch.randint(0, self.classes + 1, REGIONS_HW, generator=generator, dtype=torch.int32)
            rows, columns = (
                torch.arange(side) * number // side for side, number in zip(image.shape, REGIONS_HW, strict=False)
            )
            labels = regions[rows[:, None], columns]
            found.append(Annotation(attention, maps, maps, torch.ones(self.classes), labels))
        return found


def measure_pipeline(pictures: int, classes: int, height_px: int, width_px: int, console: Console) -> dict[str, float]:
    """Images per second of the job over a local corpus, start-up excluded.

    Each rate is the difference between a run over twice the pictures and one over the pictures. While the actor starts,
    pictures are decoded ahead, so there must be many more of them than that (1,600); the demo models get an eighth.

    Returns:
        ``actor`` (demo models without Ray) and ``job`` (the same in the job); ``data plane`` (the job, the model's time
        excluded); ``waiting actor`` (a model that waits 25 ms a picture as for a GPU, without Ray) and ``waiting job``.
    """
    models = find_models(MethodOptions(clip=DEMO, diffusion=DEMO))
    names = tuple(VocabularyClass(f"class {number}", (f"class {number}",)) for number in range(classes))
    vocabulary = VocabularyRequest(names, (), ("{}",), ready=None)
    embeddings = vocabulary.embed(models.clip)
    spec = AnnotatorSpec(models.clip, models.diffusion, models.empty_prompt(), embeddings, models.settings, "fp32")
    idle, waiting = (
        IdleSpec(**{name: getattr(spec, name) for name in AnnotatorSpec.__dataclass_fields__}, seconds_per_image=wait)
        for wait in (0.0, WAIT_S)
    )
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        jpegs = write_jpegs(corpus, 2 * pictures, height_px, width_px)
        cliper = spec.build(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        actor = FittingBatches(cliper, min(BATCH_SIZE, cliper.largest_batch))
        images = [decode_image(jpeg) for jpeg in jpegs[:32]]
        actor.annotate(images[:2], range(2))
        started = time.monotonic()
        actor.annotate(images, range(len(images)))
        rates = {"actor": len(images) / (time.monotonic() - started), "waiting actor": 1 / WAIT_S}
        del actor, cliper
        session.start(ClusterOptions())
        manifest = Manifest({}, vocabulary.manifest(), models.manifest(), asdict(models.settings))
        for name, chosen, count in (
            ("job", spec, pictures // 8), ("waiting job", waiting, pictures), ("data plane", idle, pictures)
        ):  # fmt: skip
            seconds = [
                run_job(chosen, manifest, corpus, Path(folder) / f"{name} {number}", number, console)
                for number in (count, 2 * count)
            ]
            rates[name] = count / (seconds[1] - seconds[0])
    return rates


def write_jpegs(folder: Path, count: int, height_px: int, width_px: int) -> list[bytes]:
    """Soft noise as JPEG files in tar shards; about as many bytes as photographs have."""
    folder.mkdir()
    jpegs = []
    for number in range(count):
        if number % PICTURES_PER_SHARD == 0:
            shard = tarfile.open(folder / f"{number:06d}.tar", "w")  # noqa: SIM115 (closed below)
        noise = np.random.default_rng(number).integers(0, 256, (height_px // 4, width_px // 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        jpegs.append(buffer.getvalue())
        member = tarfile.TarInfo(f"{number:06d}.jpg")
        member.size = len(jpegs[-1])
        shard.addfile(member, io.BytesIO(jpegs[-1]))
        if (number + 1) % PICTURES_PER_SHARD == 0 or number + 1 == count:
            shard.close()
    return jpegs


def run_job(spec: AnnotatorSpec, manifest: Manifest, corpus: Path, target: Path, count: int, console: Console) -> float:
    """Seconds of the job's pipeline over so many pictures."""
    output = Output(open_location(str(target), "--output"))
    listed = list_corpus(open_location(str(corpus), "--input"), "auto", output.location, count)
    output.begin(manifest, overwrite=True)
    cluster = ClusterOptions(batch_size=BATCH_SIZE)
    resources = session.start(cluster)
    if isinstance(spec, IdleSpec):
        resources = replace(resources, calls_per_actor=2)
    started = time.monotonic()
    schema = ROW_SCHEMA.with_metadata(manifest.parquet_metadata())
    decode = partial(decode_batch, limits=listed.limits)
    run_pipeline(Plan(listed, decode, Annotator, spec, schema, output, cluster), resources, console)
    return time.monotonic() - started
