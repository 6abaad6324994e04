"""A training that is killed and resumed gives the same weights, and the trained models run in the method."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cliper.coarse import Queries
from cliper.loading import embed_empty_prompt, load_diffusion, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.settings import VIT_B_16, MethodSettings
from demo.training.checkpoint import Schedule, train
from demo.training.clip import PHRASES, phrases_in
from demo.training.images import TrainingImages
from demo.world.scene import draw
from tests.support.patience import PATIENCE_S
from tests.support.stages import predict

ROOT = Path(__file__).parents[2]


class KilledError(Exception):
    pass


def small_training(folder: Path, killed_at: int | None = None) -> dict[str, Tensor]:
    """Ten steps of a small model on batches that depend on the step alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss_of_step(step: int) -> Tensor:
        if step == killed_at:
            raise KilledError
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return ((model(x) - x.sum(dim=1, keepdim=True)) ** 2).mean()

    train(model, loss_of_step, Schedule(steps=10, learning_rate=0.05, save_every=2), folder)
    return model.state_dict()


@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_a_killed_training_ends_with_the_same_weights(killed_at: int, tmp_path: Path) -> None:
    undisturbed = small_training(tmp_path / "undisturbed")
    with pytest.raises(KilledError):
        small_training(tmp_path / "killed", killed_at)
    resumed = small_training(tmp_path / "killed")
    assert undisturbed.keys() == resumed.keys()
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in resumed)


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = small_training(tmp_path)
    again = small_training(tmp_path, killed_at=0)
    assert all(torch.equal(first[name], again[name]) for name in again)


def test_phrases_are_found_in_captions() -> None:
    caption = "a photo of two red cars, three snowmen and an orange tent with snow and a sunset sky"
    found = {phrase for phrase, there in zip(PHRASES, phrases_in(caption), strict=True) if there}
    assert found == {"car", "red car", "snowman", "tent", "orange tent", "snow", "sky", "sunset sky"}


def test_batches_depend_on_the_step_alone() -> None:
    images, again = TrainingImages(20, 32), TrainingImages(20, 32)
    first, captions = images.batch(3, 8)
    assert torch.equal(first, again.batch(3, 8)[0])
    assert not torch.equal(first, images.batch(4, 8)[0])
    assert first.shape == (8, 3, 32, 32)
    assert -1 <= first.min() < first.max() <= 1
    assert all(caption.startswith("a photo of ") for caption in captions)


@pytest.mark.long
def test_a_training_killed_between_models_gives_models_that_run(tmp_path: Path) -> None:
    places = ["--folder", str(tmp_path), "--target", str(tmp_path / "models"), "--no-fused"]
    sizes = ["--clip-images", "64", "--diffusion-images", "64"]
    steps = ["--clip.steps", "2", "--autoencoder.steps", "2", "--unet.steps", "2"]
    command = [sys.executable, "-m", "demo.training", *places, *sizes, *steps]
    killed = subprocess.Popen(command, cwd=ROOT)
    while not (tmp_path / "clip/checkpoint.safetensors").exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    assert killed.wait() != 0
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert resumed.returncode == 0, resumed.stderr
    assert "clip: step" not in resumed.stdout, "CLIP was trained already"
    assert "<svg" in (tmp_path / "models/loss-curves.svg").read_text()

    clip = find_clip(f"local-dir:{tmp_path / 'models/clip'}")
    diffusion = find_diffusion(str(tmp_path / "models/diffusion"))
    cpu, dtype = torch.device("cpu"), torch.float32
    model = load_diffusion(diffusion, embed_empty_prompt(diffusion), cpu, dtype)
    tower = load_vision_tower(clip, cpu, dtype)
    rows = torch.nn.functional.normalize(torch.randn(3, clip.model_cfg["embed_dim"]), dim=-1)
    queries = Queries.build(rows[:2], rows[2:], torch.tensor([0, 1]))
    cliper = Cliper(tower, queries, MethodSettings(**vars(VIT_B_16) | {"shorter_side_px": 96}), model)
    (result,) = predict(cliper, [draw(0, 96, 128).image], [0])
    assert result.labels.shape == (96, 128)
    assert np.isfinite(result.scores.numpy()).all()
