"""Half precision gives the labels of full precision, but for a pixel in a hundred."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from cliper.models import DEMO
from cliper.preprocess import ImageArray
from cliper.settings import MethodSettings
from cliper.specs import CliperSpec
from cliper.vocabulary import VocabularyRequest
from demo.world.names import NAMES
from demo.world.scene import draw
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from schemas.embeddings import embeddings_from_bytes
from schemas.vocabulary import VocabularyClass
from tests.end_to_end.test_photographs import PHOTOS, REAL_CLIP, write_embeddings
from tests.support.corpora import decode_image
from tests.support.stages import predict

PRODUCTS = {
    torch.ops.aten.linear, torch.ops.aten.matmul, torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm,
    torch.ops.aten.conv2d, torch.ops.aten.convolution, torch.ops.aten.scaled_dot_product_attention,
}  # fmt: skip


class SumsInFullPrecision(TorchDispatchMode):
    """Products of half-precision numbers as GPUs compute them: added up in fp32, then rounded.

    A CPU's own fp16 products do the same and take a hundred times as long.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if function.overloadpacket not in PRODUCTS or args[0].dtype == torch.float32:
            return function(*given[0], **given[1])
        full = tree_map_only(torch.Tensor, torch.Tensor.float, given)
        return function(*full[0], **full[1]).to(args[0].dtype)


def agreement(spec: CliperSpec, images: list[ImageArray]) -> dict[str, float]:
    """By half precision: share of all pixels that have the same label as in fp32."""
    cpu = torch.device("cpu")
    theirs = predict(spec.build(cpu), images, range(len(images)))
    shares = {}
    for precision in ("bf16", "fp16"):
        half = replace(spec, precision=precision).build(cpu)
        with SumsInFullPrecision():
            ours = predict(half, images, range(len(images)))
        same = [mine.labels == full.labels for mine, full in zip(ours, theirs, strict=True)]
        shares[precision] = float(torch.cat([pixels.flatten() for pixels in same]).float().mean())
    return shares


def test_drawn_images() -> None:
    models = find_models(MethodOptions(clip=DEMO, diffusion=DEMO))
    vocabulary = VocabularyRequest(tuple(VocabularyClass(name, (name,)) for name in NAMES), (), ("{}",), ready=None)
    shares = agreement(
        models.spec(vocabulary.embed(models.clip, "release"), "fp32"), [draw(seed, 240, 320).image for seed in range(8)]
    )
    print(shares)
    assert min(shares.values()) >= 0.99


@pytest.mark.skipif(not (PHOTOS and REAL_CLIP), reason="CLIPER_PHOTOS and CLIPER_REAL_CLIP are not set")
def test_photographs(tmp_path: Path) -> None:
    """OpenAI's ViT-B/16 without compensation, COCO-Stuff's words and settings."""
    clip = Path(str(REAL_CLIP))
    write_embeddings(clip / "text_embeddings.npz", tmp_path / "embeddings.safetensors")
    models = find_models(MethodOptions(clip=f"local-dir:{clip / 'clip'}", diffusion="none"))
    settings = MethodSettings(**vars(models.settings) | {
        "logit_scale": 50.0, "attention_threshold": 0.2, "score_threshold": 0.1, "background_threshold": 0.1,
        "normalize_maps": False,
    })  # fmt: skip
    embeddings = embeddings_from_bytes((tmp_path / "embeddings.safetensors").read_bytes())
    spec = CliperSpec(models.clip, None, None, embeddings, settings, "fp32", models.all_inputs)
    images = [decode_image(path.read_bytes()) for path in sorted((Path(str(PHOTOS)) / "images").glob("*.jpg"))]
    shares = agreement(spec, images)
    print(shares, f"of the pixels of {len(images)} photographs")
    assert min(shares.values()) >= 0.99
