"""An image that kills the labelling process costs its own row, and its neighbours are labelled."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.idle import Idle
from cliper.pipeline import Prediction
from cliper.preprocess import InputSpec, Prepared
from cliper.settings import VIT_L_14, MethodSettings
from cluster.corpus.decode import image_seed
from cluster.corpus.inputs import open_input
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import list_corpus
from cluster.encoders import AnnotationEncoder
from cluster.output.folder import Output
from cluster.run import Pipeline, run_to_completion
from cluster.session import ClusterOptions
from cluster.storage import open_location
from schemas.manifest import Manifest
from tests.support.corpora import jpeg, write_folder
from tests.support.jobs import OutputReader

IMAGES, DEADLY = 12, 5


@dataclass
class Deadly(Idle):
    """A method that takes no time, and dies of some images."""

    seeds: tuple[int, ...] = ()

    def predict(
        self, prepared: Sequence[Prepared], allowed: Any = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `cliper.pipeline.Segmenter.predict`."""
        if any(image.seed in self.seeds for image in prepared):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict(prepared, allowed, keep_winners)


@pytest.mark.usefixtures("ray_here")
def test_a_deadly_image_is_given_up(tmp_path: Path) -> None:
    images = {f"{number:02}.jpg": jpeg(number) for number in range(IMAGES)}
    corpus = list_corpus(open_input(str(write_folder(tmp_path / "in", images))), "auto", None)
    seeds = (image_seed(images[f"{DEADLY:02}.jpg"]),)
    spec = Deadly(InputSpec(112, 16), classes=3, clock=tmp_path / "clock", seeds=seeds)
    output = Output(open_location(str(tmp_path / "out"), "--output"))
    encoder = AnnotationEncoder(MethodSettings(**vars(VIT_L_14)), ())
    prepare = Preparer(spec.inputs, corpus.limits)
    pipeline = Pipeline(corpus, prepare, spec, encoder, Manifest({}), output, ClusterOptions(batch_size=4))
    run_to_completion(pipeline, Console(file=(tmp_path / "log").open("w")))
    rows = OutputReader(str(tmp_path / "out"), {}).rows()
    assert {name: row["status"] for name, row in rows.items()} == {
        name: "crashed" if name == f"{DEADLY:02}.jpg" else "ok" for name in images
    }
    assert rows[f"{DEADLY:02}.jpg"]["error"].endswith("the labelling process died again and again with this image")
