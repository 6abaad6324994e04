"""Measure labelling on a GPU and write docs/gpu.md, its pictures and rows of benchmarks/results.csv.

Run it from the repository root: ``python -m benchmarks.gpu_report``. It takes less than ten minutes. Combinations come
in order of importance. Those for which no time was left, and those that failed, are listed on the page.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

from benchmarks.agreement import agreement_with_fp32
from benchmarks.clock import Result, apart
from benchmarks.gpu_page import Findings, kept_counts, sentence, write_page
from benchmarks.roofline import count_apart, measure_rates
from benchmarks.speed import VERSIONS, Combination, Row, append, commit, complete, counted_case, measure, show
from cliper.models import DEMO
from cliper.settings import Compensation
from cliper.specs import check_kernels
from cluster.options import ClusterOptions

ROOT = Path(__file__).parents[1]
COUNTING_MINUTES = 1.5
MOST_IMPORTANT = 4
"""Combinations that come before the agreement of labels."""
COMPENSATIONS: tuple[Compensation, ...] = ("product", "none")


@dataclass(frozen=True)
class ReportOptions:
    """Where to measure, how long, and where to write."""

    device: Literal["cuda", "cpu", "none"] = "cuda"
    """Device of the models. none measures nothing and writes what is predicted."""
    quick: bool = False
    """Measure a few combinations of the demo models, to try the command."""
    minutes: float = 8.0
    """Time for measuring. Counting for the floors gets some more; see `COUNTING_MINUTES`."""
    output: Path | None = None
    """Folder for gpu.md and its pictures (default: docs; with --device cpu or --quick build/gpu-report). Other folders
    than docs get a results.csv of their own."""

    @property
    def folder(self) -> Path:
        """See ``output``."""
        is_trial = self.device == "cpu" or self.quick
        return self.output or ROOT / ("build/gpu-report" if is_trial else "docs")

    @property
    def results(self) -> Path:
        """The CSV file for the rows."""
        kept = self.folder.resolve() == ROOT / "docs"
        return ROOT / "benchmarks/results.csv" if kept else self.folder / "results.csv"


class Budget:
    """Calls functions, each in a process of its own, until a time is over.

    Attributes:
        missing: by name what has no result, and why.
    """

    def __init__(self, minutes: float, console: Console) -> None:
        self.ends, self.console = time.monotonic() + 60 * minutes, console
        self.missing: dict[str, str] = {}

    def call(self, name: str, function: Callable[..., Result], *arguments: Any) -> Result | None:
        """What the function returns; None if it has failed or no time was left."""
        left_s = self.ends - time.monotonic()
        self.console.print(f"{name} ({max(0, left_s):.0f} s left)")
        try:
            if left_s <= 0:
                raise TimeoutError
            return apart(function, *arguments, timeout_s=left_s)
        except TimeoutError:
            self.missing[name] = "no time was left"
        except Exception as error:  # one combination that fails must not cost the others
            self.missing[name] = shorten(f"{type(error).__name__}: {error}", 200)
        return None


def main(options: ReportOptions) -> None:
    """Measure what there is time for, print it, and write page, pictures and rows."""
    console = Console()
    if not console.is_terminal:
        console.width = 140
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.device == "none":
        findings = Findings(kept_counts())
    else:
        findings = find(options, console)
        if findings.rows:
            append(options.results, findings.rows)
    console.print(f"written: {write_page(findings, options.folder)}")


def find(options: ReportOptions, console: Console) -> Findings:
    """Measure in order of importance."""
    device, precision = options.device, ("fp16" if options.device == "cuda" else "fp32")
    budget = Budget(options.minutes, console)
    facts = budget.call("machine", machine, device, precision) or {}
    problems = None
    if device == "cuda":
        problems = budget.call("self-check of the kernels", check_kernels, torch.device(device), torch.float16)
        console.print("self-check:", "; ".join(problems) if problems else "the kernels agree with their plain versions")
    rates = budget.call("rates", measure_rates, device, precision)
    plan = quick_plan() if options.quick else full_plan()
    found: list[Row] = []

    def measure_all(combinations: list[Combination]) -> None:
        for combination in combinations:
            name = sentence(combination)
            found.extend(budget.call(name, measure, device, precision, 1 if options.quick else 3, combination) or [])

    measure_all(plan[:MOST_IMPORTANT])
    agreement = {}
    for compensation in COMPENSATIONS:
        name = f"agreement of labels, compensation {compensation}"
        if shares := budget.call(name, agreement_with_fp32, device, precision, compensation):
            agreement[compensation] = shares
    measure_all(plan[MOST_IMPORTANT:])
    measured = dict.fromkeys(Combination.of(row) for row in found)
    cases = dict.fromkeys(counted_case(of, precision) for of in measured if of.variant == "fast")
    counting = Budget(COUNTING_MINUTES, console)
    counts = counting.call("floors of the stages", count_apart, list(cases)) or {}
    counts |= {case: kept for case, kept in kept_counts().items() if case not in counts}
    complete(found, counts, rates, agreement)
    for combination in measured:
        show([row for row in found if Combination.of(row) == combination], console)
    note = ""
    if device == "cpu" or options.quick:
        note = f"This is a trial of the command, with {'the demo models' if options.quick else 'a CPU'}."
    return Findings(counts, note, facts, problems, rates, found, agreement, budget.missing | counting.missing)


def full_plan() -> list[Combination]:
    """In order of importance: all models as jobs use them by default, then everything else, model by model."""
    usual = Combination("fast", "ViT-L-14", "product", "500x375", 21, ClusterOptions.batch_size)
    models = [
        usual._replace(clip=clip, compensation=compensation)
        for clip in ("ViT-L-14", "ViT-B-16")
        for compensation in COMPENSATIONS
    ]
    changes: list[dict[str, Any]] = [
        {"batch_size": 1}, {"batch_size": 1, "variant": "literal"}, {"batch_size": 32}, {"image_size": "4000x3000"},
        {"classes": 1000}, {"batch_size": 16},
    ]  # fmt: skip
    return models + [model._replace(**change) for model in models for change in changes]


def quick_plan() -> list[Combination]:
    """The demo models with small images."""
    usual = Combination("fast", DEMO, "product", "128x96", 5, 2)
    return [
        usual, usual._replace(compensation="none"), usual._replace(batch_size=1),
        usual._replace(batch_size=1, variant="literal"), usual._replace(compensation="none", image_size="256x192"),
    ]  # fmt: skip


def machine(device_type: str, precision: str) -> dict[str, str]:
    """What the figures were measured with, by name."""
    facts = {"device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPU cores"}
    if device_type == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--id=0", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts = {
            "device": f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {gpu.multi_processor_count} multiprocessors",
            "host": facts["device"],
            "driver": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip(),
            "CUDA": torch.version.cuda or "",
            "Triton": version("triton"),
        }
    versions = {name: version(name) for name in VERSIONS}
    return facts | versions | {
        "number format": precision, "commit": commit(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(ReportOptions, description=__doc__))
