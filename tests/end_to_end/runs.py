"""Running the job as a user does, and reading what it left."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from tests.support.s3_server import s3_client

ROOT = Path(__file__).parents[2]
VOCABULARY = "thing\nother: some other thing; another one\nlast thing, with a comma\n"


def command(corpus: str, output: str, *flags: str) -> list[str]:
    """The job's command line."""
    return [sys.executable, "jobs/annotate.py", "--input", corpus, "--output", output, *flags]


def annotate(corpus: str, output: str, *flags: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the job to its end."""
    return subprocess.run(
        command(corpus, output, *flags),
        cwd=ROOT,
        env=os.environ | dict(env),
        capture_output=True,
        text=True,
        timeout=300,
    )


def tiny_flags(folder: Path, clip: Path, diffusion: Path | str) -> list[str]:
    """Flags for the tiny models and a vocabulary of three classes."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(VOCABULARY)
    models = ["--clip", f"local-dir:{clip}", "--diffusion", str(diffusion)]
    settings = ["--shorter-side-px", "112", "--logit-scale", "40", "--score-threshold", "0.2"]
    return ["--vocab", str(vocabulary), *models, *settings, "--background-threshold", "0.3"]


def broken_copy(model: Path, target: Path) -> Path:
    """A model folder that looks right until its weights are loaded."""
    for path in model.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(model)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes()[: 1000 if path.suffix == ".safetensors" else None])
    return target


class OutputReader:
    """An output folder, local or in the test's bucket."""

    def __init__(self, address: str, env: Mapping[str, str]) -> None:
        self.fs = s3_client(dict(env)) if address.startswith("s3://") else fsspec.filesystem("file")
        self.path = address.removeprefix("s3://")

    def names(self) -> set[str]:
        return {str(path).removeprefix(f"{self.path}/") for path in self.fs.find(self.path)}

    def files(self) -> dict[str, bytes]:
        return {name: self.fs.cat_file(f"{self.path}/{name}") for name in self.names()}

    def tables(self) -> list[Any]:
        names = sorted(name for name in self.names() if name.endswith(".parquet") and "/" not in name)
        return [pq.read_table(io.BytesIO(self.fs.cat_file(f"{self.path}/{name}"))) for name in names]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows by image id; fails on a doubled one."""
        rows = [row for table in self.tables() for row in table.to_pylist()]
        by_id = {row["image_id"]: row for row in rows}
        assert len(by_id) == len(rows), "an image has two rows"
        return by_id

    def json(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.files()[name])
        return document
