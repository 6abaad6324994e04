"""Weights come from the hub once per machine, and are found again without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from cliper.fetch import main
from cliper.models import CLIP_WEIGHTS, DEMO_MODEL
from tests.support.model_hub import COMMIT, model_hub

ROOT = Path(__file__).parents[2]
CLIP_REPOSITORY, DIFFUSION_REPOSITORY = "timm/vit_base_patch32_clip_224.openai", "someone/diffusion"
FIND = f"""
from cliper.models import find_clip, find_diffusion
clip, diffusion = find_clip("ViT-B-32"), find_diffusion("{DIFFUSION_REPOSITORY}")
"""
SHOW = "print(clip.weights().read_bytes()[:7], diffusion.revision)\n"
LOAD = """
from cliper.loading import load_diffusion
import torch
load_diffusion(diffusion, torch.zeros(1, 77, 64), torch.device("cpu"), torch.float32)
"""
READ_CONFIG = f"""
from huggingface_hub import hf_hub_download
hf_hub_download("{DIFFUSION_REPOSITORY}", "unet/config.json")
"""
FETCH = "from cliper.fetch import fetch\nfetch(clip, diffusion)\n"


def start_python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | environment
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=variables, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_python(*arguments: str, **environment: str) -> str:
    process = start_python(*arguments, **environment)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return stdout


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model and a diffusion model, and beside their weights files that nobody needs."""
    folder = tmp_path_factory.mktemp("hub")
    clip, diffusion = folder / CLIP_REPOSITORY, folder / DIFFUSION_REPOSITORY
    clip.mkdir(parents=True)
    (clip / CLIP_WEIGHTS).write_bytes(b"weights" * 1_000_000)
    shutil.copytree(DEMO_MODEL / "diffusion", diffusion)
    for path in (clip / "pytorch_model.bin", diffusion / "all.safetensors", diffusion / "unet/model.fp16.safetensors"):
        path.write_bytes(b"large")
    return folder


NEEDED = {
    f"{CLIP_REPOSITORY}/{CLIP_WEIGHTS}",
    *(
        f"{DIFFUSION_REPOSITORY}/{path.relative_to(DEMO_MODEL / 'diffusion')}"
        for part in ("unet", "vae", "scheduler")
        for path in (DEMO_MODEL / "diffusion" / part).iterdir()
    ),
}


@pytest.mark.long
def test_fetched_weights_are_found_with_and_without_a_hub(repositories: Path, tmp_path: Path) -> None:
    with model_hub(repositories) as hub:
        environment = hub.environment | {"HF_HOME": str(tmp_path)}
        run_python("-m", "cliper.fetch", "ViT-B-32", DIFFUSION_REPOSITORY, **environment)
        assert hub.downloads.keys() == NEEDED
        online = run_python("-c", FIND + SHOW, **environment)
        assert set(hub.downloads.values()) == {1}
    offline = run_python("-c", FIND + FETCH + SHOW + LOAD, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert online == offline == f"b'weights' {COMMIT}\n"


@pytest.mark.long
def test_weights_that_are_nowhere_are_named(repositories: Path, tmp_path: Path) -> None:
    with model_hub(repositories) as hub:
        run_python("-m", "cliper.fetch", "ViT-B-32", "", **hub.environment | {"HF_HOME": str(tmp_path)})
        run_python("-c", READ_CONFIG, **hub.environment | {"HF_HOME": str(tmp_path)})
    missing = start_python("-c", FIND + FETCH, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    _, stderr = missing.communicate()
    assert "ModelError: weights cannot be fetched" in stderr
    assert f"the cache has no vae/*.safetensors of {DIFFUSION_REPOSITORY}" in stderr


@pytest.mark.long
def test_four_processes_of_a_machine_download_once(repositories: Path, tmp_path: Path) -> None:
    with model_hub(repositories) as hub:
        environment = hub.environment | {"HF_HOME": str(tmp_path)}
        processes = [start_python("-c", FIND + FETCH + SHOW, **environment) for _ in range(4)]
        answers = [process.communicate() for process in processes]
        assert [stdout for stdout, _ in answers] == [f"b'weights' {COMMIT}\n"] * 4, answers
        assert hub.downloads.keys() == NEEDED
        assert set(hub.downloads.values()) == {1}


def test_empty_names_and_models_on_the_machine_fetch_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    main("demo", "")
    assert capsys.readouterr().out == ""
    assert not any(tmp_path.iterdir())
