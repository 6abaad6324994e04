"""Checks of nodes before a job. Each problem is one sentence, and no file is left behind."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cliper.loading import usable_gpus
from cliper.models import DEMO, LOCAL_PREFIX, find_clip, find_diffusion
from cluster.preflight import Finding, Needs, check_node, check_nodes
from cluster.storage import open_location
from jobs.preflight import main
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import SharedRay, refusal
from tests.support.patience import PATIENCE_S
from tests.support.ray_processes import Head, ray_head, ray_worker

ROOT = Path(__file__).parents[2]
OFFERS = {"CPU": 4.0, "memory": 8e9}
CHECKS = ["disk", "GPU", "memory", "weights", "input", "output"]
RAY = [pytest.mark.long, pytest.mark.end_to_end, pytest.mark.xdist_group("preflight")]


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory) -> Needs:
    """The demo's models, a shard and an output folder that does not exist yet."""
    folder = tmp_path_factory.mktemp("preflight")
    shard = write_tars(folder / "in", sample_images(2), 2) / "00000.tar"
    output = open_location(str(folder / "new" / "out"), "--output")
    return Needs(find_clip(DEMO), find_diffusion(DEMO), open_location(str(shard), "--input"), output)


def findings(needs: Needs, offers: dict[str, float] = OFFERS) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_node(needs, offers)}


def only_problem(needs: Needs, check: str, offers: dict[str, float] = OFFERS) -> str:
    """The message of the one check that fails."""
    found = findings(needs, offers)
    assert [name for name, finding in found.items() if not finding.ok] == [check], found
    assert "\n" not in found[check].said
    return found[check].said


def test_a_node_that_has_everything(needs: Needs) -> None:
    found = findings(needs)
    assert list(found) == CHECKS
    assert all(finding.ok for finding in found.values()), found
    assert found["GPU"].said == "none"
    assert found["memory"].said == "8 GB for tasks"
    assert found["input"].said.endswith("/in/00000.tar")
    assert not any(Path(found["output"].said).iterdir())


def test_what_is_not_needed_is_not_checked(needs: Needs) -> None:
    assert list(findings(replace(needs, diffusion=None, input_file=None, output=None))) == CHECKS[:4]


def test_a_head_without_work_needs_no_weights(needs: Needs) -> None:
    assert list(findings(needs, {"memory": 1e9})) == ["disk", "input", "output"]


def test_storage_that_the_node_cannot_reach(needs: Needs, tmp_path: Path) -> None:
    missing, file = tmp_path / "missing.tar", tmp_path / "file"
    file.touch()
    advice = "(every node needs the same storage)"
    unreadable = only_problem(replace(needs, input_file=open_location(str(missing), "--input")), "input")
    assert unreadable == f"{missing} cannot be read: it does not exist {advice}"
    unwritable = only_problem(replace(needs, output=open_location(str(file / "out"), "--output")), "output")
    assert unwritable == f"{file}/out cannot be written to: Not a directory {advice}"
    assert list(tmp_path.iterdir()) == [file]


def test_gpus_that_torch_cannot_use(needs: Needs) -> None:
    found = len(usable_gpus())
    said = only_problem(needs, "GPU", OFFERS | {"GPU": found + 1})
    assert said.startswith(f"Ray offers {found + 1} and torch can use {found}: ")
    assert "CUDA" in said


@pytest.mark.parametrize("offers", [{"CPU": 4.0}, {"CPU": 4.0, "memory": 1e9}])
def test_too_little_memory_for_decoding(needs: Needs, offers: dict[str, float]) -> None:
    said = only_problem(needs, "memory", offers)
    assert "decoding an image asks for 1.8" in said
    assert "--decode-memory-mb" in said


def test_folders_with_other_weights(needs: Needs) -> None:
    assert needs.diffusion is not None
    for other in (
        replace(needs, clip=replace(needs.clip, revision="sha256:other")),
        replace(needs, diffusion=replace(needs.diffusion, revision="sha256:other")),
    ):
        assert only_problem(other, "weights") == "'demo' holds other files here than where the job starts: copy them"


def test_a_folder_that_the_node_lacks(needs: Needs, tmp_path: Path) -> None:
    assert needs.diffusion is not None
    nowhere = f"{LOCAL_PREFIX}{tmp_path}/nowhere"
    said = only_problem(replace(needs, diffusion=replace(needs.diffusion, name=nowhere, folder=nowhere)), "weights")
    assert said.startswith(f"diffusion model {nowhere!r} has no folder vae/")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clip", "ViT-Z-99"], "CLIP model 'ViT-Z-99' is unknown"),
        (["--diffusion", "{tmp}"], "has no folder vae/"),
        (["--input", "{tmp}/nowhere"], "--input {tmp}/nowhere: it does not exist"),
        (["--output", "s3://key:secret@bucket/out"], "--output carries credentials"),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no Ray cluster answers there"),
    ],
)
def test_wrong_requests_end_before_ray_starts(flags: list[str], message: str, tmp_path: Path) -> None:
    given = [flag.format(tmp=tmp_path) for flag in flags]
    assert message.format(tmp=tmp_path) in refusal(main, "--clip", DEMO, "--diffusion", DEMO, *given)


class Fatal:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


@pytest.mark.end_to_end
@pytest.mark.slow
def test_a_node_that_does_not_answer(needs: Needs, ray_here: SharedRay) -> None:
    ((_, findings),) = check_nodes(replace(needs, clip=Fatal()))
    assert findings == [Finding("node", False, "it did not answer (WorkerCrashedError)")]


def preflight(head: Head, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a terminal wide enough for its table."""
    places = ["--input", str(folder / "in"), "--output", str(folder / "out"), "--address", head.address]
    return subprocess.run(
        [sys.executable, "jobs/preflight.py", "--clip", DEMO, "--diffusion", DEMO, *places],
        cwd=ROOT,
        env=os.environ | head.env | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


class TestCluster:
    """The command on a cluster of several nodes."""

    pytestmark = RAY

    @pytest.mark.skipif(bool(usable_gpus()), reason="needs a machine without a GPU")
    def test_it_says_which_nodes_are_ready(self, tmp_path: Path) -> None:
        write_tars(tmp_path / "in", sample_images(2), 2)
        with ray_head("--num-cpus=1", "--num-gpus=0") as head, ray_worker(head, "--num-cpus=1", "--num-gpus=0"):
            ready = preflight(head, tmp_path)
            assert ready.returncode == 0, ready.stderr
            assert "All 2 nodes are ready." in ready.stdout
            assert [ready.stdout.count(f" {check} ") for check in CHECKS] == [2] * len(CHECKS)
            with ray_worker(head, "--num-cpus=1", "--num-gpus=1"):
                broken = preflight(head, tmp_path)
        assert broken.returncode == 1, broken.stdout
        assert "1 of 3 nodes are not ready" in broken.stderr
        assert broken.stdout.count("Ray offers 1 and torch can use 0: ") == 1
        assert not any((tmp_path / "out").iterdir())
