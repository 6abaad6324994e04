"""The report is written without a GPU too, and leaves out nothing silently."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import agreement, gpu_report, roofline
from benchmarks.gpu_page import NOTHING, Findings, kept_counts, sentence, write_page
from benchmarks.gpu_report import ROOT, Budget, ReportOptions, full_plan, main, quick_plan
from benchmarks.speed import STAGES


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure without processes, whose start takes longer than the demo models, and as little as possible."""

    def call(function: Any, *arguments: Any, timeout_s: float | None = None) -> Any:
        return function(*arguments)

    for module in (gpu_report, roofline):
        monkeypatch.setattr(module, "apart", call)
    monkeypatch.setattr(agreement, "IMAGES", 1)
    monkeypatch.setattr(roofline, "IN_A_ROW", 1)


@pytest.mark.long
@pytest.mark.usefixtures("in_this_process")
def test_a_quick_report_has_all_tables_and_pictures(tmp_path: Path) -> None:
    main(ReportOptions(device="cpu", quick=True, output=tmp_path))
    page = (tmp_path / "gpu.md").read_text()
    assert "This is a trial of the command, with the demo models." in page
    assert NOTHING not in page
    assert "## Not measured" not in page
    assert "The kernels were not compared" in page
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| demo | ")]
    found = [(variant, compensation, size, int(batch)) for _, compensation, variant, size, _, batch, *_ in lines]
    assert found == [(of.variant, of.compensation, of.image_size, of.batch_size) for of in quick_plan()]
    stages = page.partition("### demo, compensation product")[2].partition("###")[0]
    assert all(f"| {stage} | " in stages for stage in (*STAGES, "total"))
    for name in ("gpu-stages.svg", "gpu-batches.svg"):
        assert f"({name})" in page
        assert (tmp_path / name).read_text().startswith("<?xml")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert {row["stage"] for row in csv.DictReader(file)} >= {"total", "actor", "end to end"}


@pytest.mark.usefixtures("in_this_process")
def test_without_time_everything_is_listed_as_not_measured(tmp_path: Path) -> None:
    main(ReportOptions(device="cpu", minutes=0, output=tmp_path))
    page = (tmp_path / "gpu.md").read_text()
    assert NOTHING in page
    for combination in full_plan():
        assert f"* {sentence(combination)}: no time was left\n" in page
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.usefixtures("in_this_process")
def test_what_fails_is_listed_and_costs_nothing_else() -> None:
    budget = Budget(1, Console(file=io.StringIO()))
    assert budget.call("a division", lambda: 1 // 0) is None
    assert budget.call("a sum", lambda: 1 + 1) == 2
    assert budget.missing == {"a division": "ZeroDivisionError: integer division or modulo by zero"}


def test_problems_of_the_kernels_are_on_the_page(tmp_path: Path) -> None:
    write_page(Findings(kept_counts(), facts={"device": "one"}, problems=["early_sum: differs"]), tmp_path)
    assert "**Kernels are not used here:**\n* early_sum: differs\n" in (tmp_path / "gpu.md").read_text()


def test_the_plan_has_no_combination_twice() -> None:
    assert len(set(full_plan())) == len(full_plan())


def test_the_page_in_the_repository_is_up_to_date(tmp_path: Path) -> None:
    """If this fails, run ``python -m benchmarks.gpu_report --device none``."""
    page = (ROOT / "docs/gpu.md").read_text()
    if NOTHING in page:
        assert write_page(Findings(kept_counts()), tmp_path).read_text() == page


def test_trials_do_not_replace_the_page() -> None:
    for trial in (ReportOptions(device="cpu"), ReportOptions(device="cuda", quick=True)):
        assert trial.folder == ROOT / "build/gpu-report"
        assert trial.results == trial.folder / "results.csv"
    assert ReportOptions().results == ROOT / "benchmarks/results.csv"
