"""Cases recorded from the official release: every stage must agree.

`CLIPER_GOLDEN=DIR` runs every case folder below DIR instead of the project's own. A case folder holds `case.json`
(settings under the release's names), `expected.npz` (recorded tensors) and the image; `weights` in the case names
a folder with `clip/` (open_clip) and `diffusion/` (diffusers). With `TRITON_INTERPRET=1` the kernels are used.
"""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cliper.coarse import Queries
from cliper.loading import load_diffusion, load_text_encoder, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.settings import MethodSettings
from cliper.text import embed_phrases
from tests.support.stages import Stages, run_stages

GOLDEN = Path(os.environ.get("CLIPER_GOLDEN", Path(__file__).parent / "cases")).resolve()
CASES = sorted(path.parent for path in GOLDEN.rglob("case.json"))

ATTENTION = {
    "fused-attn": "early-layer",
    "q-q": "query-query",
    "k-k": "key-key",
    "v-v": "value-value",
    "vanilla": "query-key",
    "identity": "identity",
}
COMPENSATION = {"SFSA": "product", "mean": "mean", "selection": "head", "None": "none"}
RENAMED = {
    "attention_thr": "attention_threshold",
    "score_threshold": "score_threshold",
    "bkg_thre": "background_threshold",
    "is_normalize": "normalize_maps",
    "size": "shorter_side_px",
    "select_layer": "select_layer",
    "logit_scale": "logit_scale",
    "sliding_crop_size": "sliding_crop_px",
    "fuse_feature": "early_embeddings",
    "attention_idx": "head",
}
FIXED = {"attention_layers_to_use": [-4, -6], "time_step": 45}


def method_settings(recorded: dict[str, Any]) -> MethodSettings:
    """The release's settings under our names; a name or value that we do not know is an error."""
    ours: dict[str, Any] = {}
    for name, value in recorded.items():
        if name == "attn_type":
            ours["attention"] = ATTENTION[value]
        elif name == "refinement":
            ours["compensation"] = COMPENSATION[value]
        elif name in FIXED:
            assert value == FIXED[name], f"{name}={value} is not what this implementation does"
        else:
            ours[RENAMED[name]] = value
    assert len(ours) == len(recorded) - len(FIXED)
    return MethodSettings(**ours, windows="average" if ours.get("sliding_crop_px") else "none")


@cache
def run(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], Stages]:
    case = json.loads((folder / "case.json").read_text())
    with np.load(folder / "expected.npz", allow_pickle=False) as file:
        expected = dict(file)
    settings = method_settings(case["settings"])
    weights = (folder / case["weights"]).resolve()
    cpu, dtype = torch.device("cpu"), torch.float32
    tower = load_vision_tower(find_clip(f"local-dir:{weights / 'clip'}"), cpu, dtype)
    tower = replace(tower, kernels=os.environ.get("TRITON_INTERPRET") == "1")
    foreground, background = (torch.from_numpy(expected[f"text_{part}"]) for part in ("foreground", "background"))
    queries = Queries.build(foreground, background, torch.arange(len(foreground)))
    diffusion = None
    if settings.compensation != "none":
        empty_prompt = torch.from_numpy(expected["null_prompt"])
        diffusion = load_diffusion(find_diffusion(str(weights / "diffusion")), empty_prompt, cpu, dtype)
        assert diffusion.timestep == expected["unet_timestep"]
    image = np.array(Image.open(folder / case["image"]).convert("RGB"))
    assert list(image.shape[:2]) == case["image_size_hw"]
    noise = [torch.from_numpy(expected["noise"][0])]
    (stages,) = run_stages(Cliper(tower, queries, settings, diffusion), [image], [0], noise=noise)
    return expected, case, stages


def test_cases_were_found() -> None:
    assert CASES, f"no case.json below {GOLDEN}"


@pytest.mark.parametrize(
    "folder",
    [pytest.param(case, id=str(case.relative_to(GOLDEN)), marks=pytest.mark.xdist_group(case.name)) for case in CASES],
)
class TestRecordedCase:
    @pytest.mark.parametrize(
        ("stage", "recorded", "tolerance"),
        [
            ("attention", "attention", 1e-3),
            ("coarse", "coarse", 1e-3),
            ("refined", "refined", 5e-3),
            ("scores", "score", 1e-3),
        ],
    )
    def test_float_stage_agrees(self, folder: Path, stage: str, recorded: str, tolerance: float) -> None:
        expected, _, stages = run(folder)
        ours, theirs = getattr(stages, stage).numpy(), expected[recorded]
        assert ours.shape == theirs.shape
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert error < tolerance

    def test_label_pixels_agree(self, folder: Path) -> None:
        expected, _, stages = run(folder)
        assert stages.labels.shape == expected["label"].shape
        assert (stages.labels.numpy() == expected["label"]).mean() >= 0.999

    @pytest.mark.parametrize("part", ["foreground", "background"])
    def test_text_embeddings_agree(self, folder: Path, part: str) -> None:
        expected, case, _ = run(folder)
        phrases = case["classes"] if part == "foreground" else case["background"]
        clip = find_clip(f"local-dir:{(folder / case['weights']).resolve() / 'clip'}")
        ours = embed_phrases(*load_text_encoder(clip, torch.device("cpu")), phrases, case["templates"]).numpy()
        theirs = expected[f"text_{part}"]
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_unknown_setting_fails_loudly() -> None:
    with pytest.raises(KeyError, match="colour"):
        method_settings({"colour": "red"})
