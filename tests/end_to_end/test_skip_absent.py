"""``--skip-absent``: the same annotations, and rows that say which scores are final."""

from pathlib import Path

import jobs.annotate
import jobs.evaluate
from tests.end_to_end.conftest import FinishedRun
from tests.support.jobs import OutputReader, refusal

LIMIT = 10


def test_annotations_stay_and_rows_say_which_scores_are_final(finished_run: FinishedRun, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    flags = [*finished_run.flags, "--skip-absent", "--limit", str(LIMIT)]
    ended = finished_run.ray.annotate(finished_run.corpus, output, *flags)
    assert ended.returncode == 0, ended.stderr
    reader, before = OutputReader(output, {}), finished_run.reader().rows()
    rows = reader.rows()
    assert len(rows) == LIMIT
    final, bounds = 0, 0
    for name, row in rows.items():
        plain = before[name]
        assert plain["refined_classes"] is None
        assert row["annotations"] == plain["annotations"]
        assert {annotation["category_id"] for annotation in row["annotations"]} <= set(row["refined_classes"])
        for category, (score, exact) in enumerate(zip(row["class_scores"], plain["class_scores"], strict=True), 1):
            if category in row["refined_classes"]:
                final += 1
                assert score == exact
            else:
                bounds += 1
                assert score >= exact
    assert final
    assert bounds, "the case is not worth testing if every class can be present everywhere"


def test_requests_that_make_no_sense_are_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    where = ["--input", str(tmp_path), "--output", str(tmp_path / "labels"), *finished_run.flags, "--diffusion", "none"]
    assert "skip_absent saves work of affinity diffusion" in refusal(jobs.annotate.main, *where, "--skip-absent")
    where = ["--dataset", "voc20", "--root", str(tmp_path), "--output", str(tmp_path / "labels")]
    assert "leaves scores out that an evaluation needs" in refusal(jobs.evaluate.main, *where, "--skip-absent")
