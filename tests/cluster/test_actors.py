"""What the models give is checked before it becomes a row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from benchmarks.idle import Idle
from cliper.preprocess import InputSpec, Prepared
from cliper.segmenter import Prediction
from cliper.settings import VIT_B_16, MethodSettings
from cluster.actors import Labeller
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer
from cluster.corpus.readers import Record
from cluster.encoders import AnnotationEncoder
from cluster.progress import start_counter
from schemas.rows import Status
from tests.support.corpora import jpeg


class NotFinite(Idle):
    """Gives every second image a score that is no number."""

    def predict(self, prepared: Sequence[Prepared], *options: Any) -> list[Prediction]:
        found = super().predict(prepared, *options)
        for prediction in found[1::2]:
            prediction.scores[0] = np.nan
        return found


@pytest.mark.usefixtures("ray_here")
def test_scores_that_are_not_finite_are_a_failure(tmp_path: Path) -> None:
    spec = NotFinite(InputSpec(112, 16), classes=2, clock=tmp_path / "clock")
    prepare = Preparer(spec.inputs, DEFAULT_LIMITS)
    rows = [prepare(Record(f"{i}.jpg", f"{i}.jpg", f"{i}.jpg", jpeg(i))) for i in range(3)]
    encoder = AnnotationEncoder(MethodSettings(**vars(VIT_B_16)), ["b"], ["c", "d"])
    labeller = Labeller(spec, encoder, start_counter(600), batch=4, stall_timeout_s=600)
    labelled = labeller(pa.Table.from_pylist(rows, PREPARED_SCHEMA)).to_pylist()
    assert [row["status"] for row in labelled] == [Status.OK, Status.BAD_SCORES, Status.OK]
    assert labelled[1]["error"].startswith("1.jpg: the models gave scores that are no finite numbers")
    assert labelled[1]["class_scores"] is None
    counts, notes = ray.get(labeller.counter.get.remote())
    assert (counts["ok"], counts["failed"], notes) == (2, 1, [])
    assert counts["busy_ms"] > 0
