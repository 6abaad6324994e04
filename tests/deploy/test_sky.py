"""SkyPilot's task: the job understands its command. `make test-clouds` loads it with SkyPilot itself."""

import os
import shlex
import subprocess
from typing import Any

import pytest
import tyro
import yaml

from jobs.annotate import AnnotateOptions
from tests.deploy.files import ROOT


def task() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "examples/cluster/sky.yaml").read_text())
    return document


def test_the_job_understands_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"SKYPILOT_NUM_NODES": str(task()["num_nodes"])}
    *_, line = task()["run"].splitlines()
    assert line.startswith("python jobs/annotate.py ")
    expanded = subprocess.run(
        ["bash", "-c", f"printf '%q ' {line}"], env=os.environ | task()["envs"] | nodes, capture_output=True, text=True
    )
    for name, value in task()["envs"].items():
        monkeypatch.setenv(name, value)
    options = tyro.cli(AnnotateOptions, args=shlex.split(expanded.stdout)[2:], config=(tyro.conf.OmitArgPrefixes,))
    assert options.cluster.actors == task()["num_nodes"]
    assert options.vocab == task()["envs"]["VOCAB"]
    assert (ROOT / str(options.vocab)).is_file()


def test_it_installs_the_lock_and_asks_for_a_token() -> None:
    assert "uv pip sync --quiet --python ~/venv/bin/python --require-hashes" in task()["setup"]
    assert task()["envs"]["RAY_AUTH_MODE"] == "token"
    assert task()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
