"""Fuzzing with coverage: `python -m tests.fuzz TARGET --seconds 600`. A crash leaves its input in crash-*."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import atheris
import tyro

with atheris.instrument_imports(include=["cluster", "schemas", "tarfile", "PIL"]):
    from tests.fuzz.targets import TARGETS, seeds


@dataclass(frozen=True)
class FuzzOptions:
    """What to fuzz, and for how long."""

    target: Annotated[Literal["decode", "tar", "table", "vocabulary", "embeddings"], tyro.conf.Positional]
    """What to feed."""
    seconds: int = 600
    """Time to spend."""


def main(options: FuzzOptions) -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(seeds(options.target)):
            (Path(corpus) / f"{number:04}").write_bytes(data)
        arguments = [f"-max_total_time={options.seconds}", "-timeout=30", "-rss_limit_mb=4096", "-max_len=65536"]
        atheris.Setup([sys.argv[0], corpus, *arguments, "-print_final_stats=1"], TARGETS[options.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main(tyro.cli(FuzzOptions, description=__doc__))
