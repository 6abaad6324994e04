"""Images that travel as what the models read get the labels that whole images get, to the last pixel.

On every readable image of this folder; and on photographs, if `CLIPER_PHOTOS` and `CLIPER_REAL_CLIP` name folders as
`tests/end_to_end/test_photographs.py` describes them.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cliper.coarse import Queries
from cliper.decode import decode_rgb
from cliper.labels import class_scores
from cliper.loading import load_diffusion, load_vision_tower
from cliper.models import find_clip, find_diffusion
from cliper.pipeline import Cliper
from cliper.preprocess import InputSpec
from cliper.settings import VIT_B_16, MethodSettings
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.prepare import PREPARED_SCHEMA, Preparer, read_prepared
from cluster.corpus.readers import Record
from schemas.rows import Status
from tests.corpus.images import odd_images
from tests.reference.label_map import plain_label_map
from tests.support.corpora import decode_image
from tests.support.stages import labels_of, result_of

CPU = torch.device("cpu")
READABLE = {name: data for name, (data, status) in odd_images().items() if status == Status.OK}
PHOTOS, REAL_CLIP = os.environ.get("CLIPER_PHOTOS"), os.environ.get("CLIPER_REAL_CLIP")


def assert_same_answers(cliper: Cliper, data: bytes) -> None:
    """The way of the job (prepared, through Arrow, runs) beside whole images and whole maps."""
    row = Preparer(cliper.inputs, DEFAULT_LIMITS)(Record("a", "a", "a", data))
    (prepared,) = read_prepared(pa.Table.from_pylist([row], PREPARED_SCHEMA), cliper.inputs)
    whole = decode_image(data)
    assert_same_pixels(cliper.inputs, whole, prepared.clip, prepared.affinity)
    maps = cliper.maps([prepared])
    ours = result_of(cliper.read_out(maps, [prepared])[0])
    refined, scores = maps.refined[0], class_scores(maps.coarse, maps.refined)[0]
    assert torch.equal(ours.scores, scores)
    theirs = plain_label_map(refined, scores, (whole.shape[0], whole.shape[1]), cliper.settings)
    assert torch.equal(ours.labels, theirs)


def assert_same_pixels(inputs: InputSpec, whole: np.ndarray, clip: np.ndarray, affinity: np.ndarray | None) -> None:
    height, width = inputs.clip_hw((whole.shape[0], whole.shape[1]))
    assert np.array_equal(clip, Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC))
    if affinity is not None:
        side = inputs.diffusion_side_px
        nearest = F.interpolate(torch.tensor(whole).permute(2, 0, 1)[None], (side, side), mode="nearest")
        assert np.array_equal(affinity, nearest[0].permute(1, 2, 0))


@pytest.fixture(scope="module")
def cliper(tiny_clip: Path, tiny_diffusion: Path) -> Cliper:
    tower = load_vision_tower(find_clip(f"local-dir:{tiny_clip}"), CPU, torch.float32)
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(7, 16, generator=generator), dim=-1)
    diffusion = load_diffusion(find_diffusion(str(tiny_diffusion)), torch.zeros(1, 77, 8), CPU, torch.float32)
    settings = MethodSettings(112, -1, 40.0, 0.1, 0.1, 0.3)
    return Cliper(tower, Queries.build(rows[:4], rows[4:], torch.arange(4)), settings, diffusion)


@pytest.mark.parametrize("name", READABLE)
def test_of_readable_images(name: str, cliper: Cliper) -> None:
    assert_same_answers(cliper, READABLE[name])


@pytest.mark.parametrize("normalize_maps", [True, False])
@pytest.mark.parametrize("background_threshold", [0.0, 0.3])
def test_of_a_large_image_made_in_blocks(normalize_maps: bool, background_threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    refined = F.interpolate(torch.rand(1, 7, 8, 8, generator=generator), (64, 64), mode="bilinear")[0]
    scores = torch.tensor([1.3, 0.9, 0.05, 1.0, 0.8, 1.9, 0.7])
    changes = {"normalize_maps": normalize_maps, "background_threshold": background_threshold}
    settings = MethodSettings(**vars(VIT_B_16) | {"score_threshold": 0.1} | changes)
    labels = labels_of(refined, scores, (1501, 2003), settings)
    same = labels == plain_label_map(refined, scores, (1501, 2003), settings)
    assert same.float().mean() > 0.999999  # processors without fused multiply-add may round the last place otherwise
    assert len(labels.unique()) > 4, "the case is not worth testing if few classes win"


@pytest.mark.skipif(not (PHOTOS and REAL_CLIP), reason="CLIPER_PHOTOS and CLIPER_REAL_CLIP are not set")
def test_of_photographs() -> None:
    with np.load(Path(str(REAL_CLIP)) / "text_embeddings.npz", allow_pickle=False) as file:
        rows = torch.from_numpy(file["coco_stuff171"].astype(np.float32))
    tower = load_vision_tower(find_clip(f"local-dir:{Path(str(REAL_CLIP)) / 'clip'}"), CPU, torch.float32)
    settings = MethodSettings(**vars(VIT_B_16) | {"compensation": "none", "score_threshold": 0.2})
    cliper = Cliper(tower, Queries.build(rows, rows[:0], torch.arange(len(rows))), settings)
    paths = sorted((Path(str(PHOTOS)) / "images").glob("*.jpg"))
    assert paths
    for path in paths[:10]:
        assert_same_answers(cliper, path.read_bytes())
    image = decode_rgb(paths[0].read_bytes()).resize((4000, 3000))
    prepared = cliper.inputs.prepare(image, seed=0)
    maps = cliper.maps([prepared])
    scores = class_scores(maps.coarse, maps.refined)[0]
    labels = result_of(cliper.read_out(maps, [prepared])[0]).labels
    assert torch.equal(labels, plain_label_map(maps.refined[0], scores, (3000, 4000), cliper.settings))
