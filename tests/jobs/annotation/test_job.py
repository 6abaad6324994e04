"""How the labelling job ends."""

import sys
from pathlib import Path

import pytest

from jobs.annotation.job import program


@pytest.mark.parametrize(
    ("started", "command"),
    [
        ("jobs/annotate.py", f"{sys.executable} jobs/report.py"),
        ("/a b/jobs/annotate.py", f"{sys.executable} '/a b/jobs/report.py'"),
        ("cliper annotate", f"{Path(sys.executable).with_name('cliper')} report"),
        ("/project/demo/__main__.py", f"{Path(sys.executable).with_name('cliper')} report"),
    ],
)
def test_the_next_job_is_started_as_this_one(monkeypatch: pytest.MonkeyPatch, started: str, command: str) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program("report") == command
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert program("report") == command.replace(f"{Path(sys.executable).parent}/", "")
