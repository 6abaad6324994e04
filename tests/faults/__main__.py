"""Runs all trials and writes docs/reliability.md."""

import random
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tyro
from rich.console import Console

from tests.faults.trials import IMAGES, KINDS, Trial, prepare

HEAD = """# Reliability

Every input image ends in exactly one row, whatever dies. Each trial is the real job over {images} images in tar
shards: something is broken at a random moment, the same command is given again until it ends well, and the rows are
compared with those of a run that nothing disturbed. `make faults` runs all trials and writes this file ({date}, commit
{commit}; two nodes are processes on one machine). An undisturbed run takes {seconds:.0f} s there, most of it start-up.

| fault | trials | images lost | doubled | changed | command given (mean) | recovery: median | longest |
|---|---|---|---|---|---|---|---|
"""
FOOT = """
Recovery is the time from the fault to the end of the run that finishes the job.

* driver killed: `kill -9` at any moment from the start to the end of an undisturbed run.
* driver terminated: SIGTERM, and `kill -9` five seconds later, as spot machines get it.
* actor killed: `kill -9` of the process that holds the models, after the first rows are there. Ray starts another one.
* node killed: `kill -9` of one of two nodes of a cluster with everything on it; another node joins after three seconds.
* node terminated: SIGTERM for one of two nodes, as a spot machine gets it before it is taken away; likewise.
* storage gone: the S3 server with input and output is killed and started again after 20 seconds.
* storage unreliable: a proxy in front of the S3 server answers 15 % of the requests with 503 and stops halfway through
  10 % of the answers for 2 seconds, from the first request to the last. Recovery is the whole run here.
* disk full: the output's disk takes a part of the rows; then it is made larger.

## Memory

![Memory of the job's processes over 200,000 images](memory.svg)

`python -m tests.faults.memory` labels 200,000 tiny images and samples what each part of the job holds for itself: the
driver 658 MB after 50,000 images and 659 MB in the end (+0.2 %), the actor 619 MB and 619 MB, tasks 1,023 MB and
1,043 MB (+2 %). Samples are in memory.csv.

## Fuzzing

`make fuzz` feeds the readers any bytes, with coverage, for an hour. The last one made 95 million tries: decoding 3.1
million, tar 0.9, tables 0.6, vocabularies 26, embeddings 65. It found a GIF of 900 bytes that took 3 GB (its frame is
larger than it announces); that is mended and in `tests/corpus`.
"""


@dataclass(frozen=True)
class FaultsOptions:
    """How much to try."""

    share: float = 1.0
    """Share of the full number of trials; at least one of each kind."""
    seed: int = 0
    """Of the random moments."""
    output: Path = Path("docs/reliability.md")
    """Markdown file."""


def main(options: FaultsOptions) -> None:
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(Path(folder))
        lines = []
        for kind, (trial, count) in KINDS.items():
            outcomes = []
            for number in range(max(1, round(count * options.share))):
                outcomes.append(trial(bench, number, random.Random(f"{options.seed} {kind} {number}")))
                console.print(f"{kind} {number}: {outcomes[-1]}", highlight=False)
            lines.append(line(kind, outcomes))
            facts = {"images": IMAGES, "date": datetime.now(UTC).date(), "commit": current_commit()}
            head = HEAD.format(seconds=bench.seconds, **facts)
            options.output.write_text(head + "\n".join(lines) + "\n" + FOOT, encoding="utf-8")


def current_commit() -> str:
    """Short hash of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def line(kind: str, outcomes: list[Trial]) -> str:
    seconds = [outcome.seconds for outcome in outcomes]
    wrong = [sum(getattr(outcome, name) for outcome in outcomes) for name in ("lost", "doubled", "changed")]
    times = [f"{statistics.median(seconds):.0f} s", f"{max(seconds):.0f} s"]
    cells = [kind, len(outcomes), *wrong, f"{statistics.mean(outcome.runs for outcome in outcomes):.1f}", *times]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main(tyro.cli(FaultsOptions, description=__doc__))
