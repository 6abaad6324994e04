"""Rows that do not fit their manifest are one sentence for every job that reads them."""

from pathlib import Path

import pytest

from jobs import export, filter, report
from tests.support.drawn_labels import label_map, row, write_labels
from tests.support.jobs import Main, refusal


@pytest.mark.parametrize(
    ("main", "flags"), [(export.main, []), (filter.main, ["--require", "sky"]), (report.main, [])],
    ids=["export", "filter", "report"],
)  # fmt: skip
def test_a_category_that_the_manifest_does_not_know(main: Main, flags: list[str], tmp_path: Path) -> None:
    rows = [row(seed, label_map(seed)) for seed in range(3)]
    rows[1]["annotations"][0]["category_id"] = 99
    labels = write_labels(tmp_path / "labels", rows)
    sentence = refusal(main, "--labels", str(labels), "--output", str(tmp_path / "out"), *flags)
    assert sentence == f"{labels} holds rows that do not fit the manifest: a category is not between 1 and 23"
    assert not list(tmp_path.glob("out*"))
