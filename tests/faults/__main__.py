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

Every input image ends in exactly one row, whatever fails. Each trial runs the real job over {images} images in tar
shards. Something is broken at a random moment, and the same command is given again until it succeeds. The rows are
then compared with those of an undisturbed run. `make faults` runs all trials and writes this file ({date}, commit
{commit}; two nodes are processes on one machine). An undisturbed run takes {seconds:.0f} s there, most of it start-up.

| fault | trials | images lost | doubled | changed | command given (mean) | recovery: median | longest |
|---|---|---|---|---|---|---|---|
"""
FOOT = """
Recovery is the time from the fault to the end of the run that finishes the job.

* driver killed: `kill -9` at any moment between the start and the end of an undisturbed run.
* driver terminated: SIGTERM, and `kill -9` five seconds later, as on spot machines.
* actor killed: `kill -9` of the process that holds the models, after the first rows exist. Ray starts another one.
* node killed: `kill -9` of one of two nodes of a cluster with everything on it. Another node joins after three
  seconds.
* node terminated: SIGTERM for one of two nodes, as on a spot machine before it is taken away. A replacement
  joins in the same way.
* head killed: `kill -9` of the cluster's GCS server. The driver says that the head is gone, and Ray ends it a minute
  later.
* storage gone: the S3 server with input and output is killed and started again after 20 seconds.
* storage unreliable: a proxy in front of the S3 server answers 15 % of the requests with 503 and pauses for 2 seconds
  halfway through 10 % of the answers, from the first request to the last. Recovery is the whole run here.
* disk full: the output's disk has room for only part of the rows; then it is made larger.

## Memory

![Memory of the job's processes over 200,000 images](memory.svg)

`python -m tests.faults.memory` labels 200,000 tiny images and samples the private memory of each part of the job. The
driver used 658 MB after 50,000 images and 659 MB at the end (+0.2 %), the actor 619 MB and 619 MB, tasks 1,023 MB and
1,043 MB (+2 %). The samples are in memory.csv.

## Simulation

`make simulate` runs the driver's own steps (lease, change detection, recovery, resume, finish) over a storage in memory
and a clock that only the simulation moves. Drivers die at any change of the storage, and the workers of some live on.
Two drivers meet, and one may stand still until the other takes it for dead. The storage refuses requests, loses its
answers and lists new files late. The power fails. Shards come, change in flight and go. Readers look on. Labelling is
simulated. 20,000 histories take about half an hour on one core. The test of the simulation plants five bugs, and all of
them are found: rows that are not synced, a commit before its rows, rows of older versions, late files that count,
repeated rows that stay.

## Fuzzing

`make fuzz` feeds random bytes to the readers for an hour, guided by coverage. The last run made 95 million attempts:
decoding 3.1 million, tar 0.9, tables 0.6, vocabularies 26, embeddings 65. It found a GIF of 900 bytes that took 3 GB,
because its frame is larger than the file announces. This is fixed, and the GIF is in `tests/corpus`.
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
