"""An image that kills, hangs or breaks the labelling process costs its own row, and its neighbours are labelled."""

import ctypes
import io
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks.idle import Idle
from cliper.decode import image_seed
from cliper.preprocess import InputSpec, Prepared
from cliper.segmenter import Prediction
from cliper.settings import VIT_L_14, MethodSettings
from cluster.corpus.inputs import open_input
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import list_corpus
from cluster.encoders import AnnotationEncoder
from cluster.options import ClusterOptions
from cluster.output.folder import Output
from cluster.run import Pipeline, run_to_completion
from cluster.storage import open_location
from schemas.manifest import Manifest
from tests.support.corpora import jpeg, write_folder
from tests.support.jobs import OutputReader

IMAGES, DEADLY, ODD = 12, 5, 10


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    ctypes.PyDLL(None).sleep(1000)  # no other Python thread gets a turn


def lose_gpu() -> None:
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@dataclass
class Deadly(Idle):
    """A method that takes no time, dies of some images, and fails with others."""

    deadly: tuple[int, ...] = ()
    odd: tuple[int, ...] = ()
    die: Callable[[], None] = kill

    def predict(
        self, prepared: Sequence[Prepared], allowed: Any = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `cliper.segmenter.Segmenter.predict`."""
        if any(image.seed in self.deadly for image in prepared):
            self.die()
        if any(image.seed in self.odd for image in prepared):
            raise IndexError("list index out of range")
        return super().predict(prepared, allowed, keep_winners)


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("die", [
    kill, pytest.param(hang, marks=pytest.mark.long), pytest.param(lose_gpu, marks=pytest.mark.long),
])  # fmt: skip
def test_a_deadly_image_is_given_up(die: Callable[[], None], tmp_path: Path) -> None:
    images = {f"{number:02}.jpg": jpeg(number) for number in range(IMAGES)}
    corpus = list_corpus(open_input(str(write_folder(tmp_path / "in", images))), "auto", None)
    deadly, odd = (image_seed(images[f"{number:02}.jpg"]) for number in (DEADLY, ODD))
    spec = Deadly(InputSpec(112, 16), classes=3, clock=tmp_path / "clock", deadly=(deadly,), odd=(odd,), die=die)
    output = Output(open_location(str(tmp_path / "out"), "--output"))
    encoder = AnnotationEncoder(MethodSettings(**vars(VIT_L_14)), (), ["a", "b", "c"])
    prepare = Preparer(spec.inputs, corpus.limits)
    cluster = ClusterOptions(batch_size=4, stall_timeout_s=2 if die is hang else 600)
    pipeline = Pipeline(corpus, prepare, spec, encoder, Manifest({}), output, cluster)
    log = io.StringIO()
    run_to_completion(pipeline, Console(file=log))
    rows = OutputReader(str(tmp_path / "out"), {}).rows()
    failed = {name: row["error"].partition(": ")[2] for name, row in rows.items() if row["status"] == "crashed"}
    assert failed == {
        f"{DEADLY:02}.jpg": "the labelling process died again and again with this image",
        f"{ODD:02}.jpg": "the models failed: IndexError: list index out of range",
    }
    assert {name for name, row in rows.items() if row["status"] == "ok"} == images.keys() - failed.keys()
    told = "made no progress for 2 s and is replaced" if die is hang else "died and was replaced"
    assert f" on {socket.gethostname()} {told}; it was busy with " in log.getvalue()
