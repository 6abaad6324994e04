"""The examples run from beginning to end, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
RUN_CELLS = """
import ast, json, sys

space = {}
for source in json.load(sys.stdin):
    *body, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if shown else [*body, last], []), "cell", "exec"), space)
    if shown:
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), space)
        print("image" if getattr(value, "_repr_png_", lambda: b"")().startswith(b"\\x89PNG") else value)
"""


def run(*arguments: str, stdin: str = "") -> list[str]:
    """The lines that a Python program prints."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_the_notebook() -> None:
    cells = json.loads((ROOT / "examples/labeler.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "a notebook in the repository has no outputs"
    shown = run("-c", RUN_CELLS, stdin=json.dumps(["".join(cell["source"]) for cell in code]))
    assert [line for line in shown if line == "image"] == ["image"] * 3
    assert "'sky'" in shown[1]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.end_to_end
def test_the_dataset(tmp_path: Path) -> None:
    printed = run("examples/ray_dataset.py", str(tmp_path / "labels"))
    assert [line for line in printed if line.startswith("0.png ['sky'")]
    rows = pq.read_table(tmp_path / "labels").to_pylist()
    assert sorted(row["path"] for row in rows) == [f"{seed}.png" for seed in range(8)]
    assert {row["status"] for row in rows} == {"ok"}
    assert {(row["width"], row["height"]) for row in rows} == {(160, 120)}
    assert all(len(row["class_scores"]) == len(row["class_probabilities"]) == 5 for row in rows)
