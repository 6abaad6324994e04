"""A published figure stands only beside an evaluation that is the published one in everything."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cliper.asked import DEFAULT_DIFFUSION
from cliper.models import ClipSpec
from cliper.preprocess import InputSpec
from cliper.published import find_benchmark
from cliper.settings import OPEN_VIT_B_16, VIT_B_16, MethodSettings
from cluster.corpus.layouts import Split
from jobs.common.methods import Method
from jobs.common.options import MethodChoice, MethodOptions
from jobs.common.request import find_models
from jobs.evaluation.comparison import compare_with_published
from jobs.evaluation.datasets import Dataset
from jobs.evaluation.figures import Comparison, markdown
from jobs.evaluation.options import EvaluateOptions
from schemas.settings_file import SettingsFile

CLIP = ClipSpec(
    "ViT-B-16", "abc", {}, 16, 12, (0, 0, 0), (1, 1, 1), VIT_B_16, OPEN_VIT_B_16,
    repository="timm/vit", pretrained="ViT-B-16:openai",
)  # fmt: skip


def compare(
    name: str = "voc21", clip: ClipSpec = CLIP, diffusion: str = DEFAULT_DIFFUSION, images: int | None = None,
    request: dict[str, Any] | None = None, split: Split = "val", **settings: Any,
) -> Comparison:  # fmt: skip
    """What is said of an evaluation that differs from the published one in what is given."""
    benchmark = find_benchmark(name)
    encoder = benchmark.encoder(16)
    encoder = encoder.with_windows() if settings.get("windows") else encoder
    known = {setting: getattr(encoder, setting) for setting in vars(VIT_B_16)}
    chosen = MethodSettings(**known | settings)
    method = Method(
        clip, {"diffusion": {"name": diffusion}}, chosen.document(), chosen, SettingsFile(), InputSpec(336, 16),
        lambda _: None, (), # type: ignore[arg-type,return-value]
    )  # fmt: skip
    shards = range(benchmark.images if images is None else images)
    labelled: Any = SimpleNamespace(corpus=SimpleNamespace(shards=shards))
    dataset = Dataset(name, labelled, (), benchmark.has_background, benchmark, split=split)
    return compare_with_published(dataset, method, EvaluateOptions(name, MethodOptions(), **(request or {})))


@pytest.mark.parametrize(
    ("name", "settings", "miou"),
    [
        ("voc21", {}, 66.4),
        ("voc21", {"compensation": "none"}, 60.7),
        ("voc21", {"preset": "paper"}, 65.9),
        ("voc21", {"windows": "average", "sliding_crop_px": 336}, 66.5),
        ("ade20k", {}, 21.5),
    ],
)
def test_the_published_evaluation(name: str, settings: dict[str, Any], miou: float) -> None:
    assert compare(name, **settings) == Comparison(miou, ())


@pytest.mark.parametrize(("given_px", "used_px"), [(0, 224), (112, 112)])
def test_sliding_windows_are_the_published_ones_unless_given(given_px: int, used_px: int, tiny_clip: Path) -> None:
    options = MethodOptions(
        clip=f"local-dir:{tiny_clip}", diffusion="none", preset="release", windows="average", sliding_crop_px=given_px
    )
    settings = find_models(options, benchmark=find_benchmark("cityscapes")).settings
    assert (settings.windows, settings.sliding_crop_px) == ("average", used_px)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"attention": "query-query"}, "--attention query-query, published early-layer"),
        ({"early_embeddings": False}, "--early-embeddings False, published True"),
        ({"compensation": "mean"}, "--compensation mean, published product"),
        ({"compensation": "guided"}, "--compensation guided, published product"),
        ({"logit_scale": 40.0}, "--logit-scale 40.0, published 100"),
        ({"shorter_side_px": 448}, "--shorter-side-px 448, published 336"),
        ({"class_score_thresholds": (0.5,) * 20}, f"--class-score-thresholds {(0.5,) * 20}, published ()"),
        ({"windows": "average", "sliding_crop_px": 224}, "--sliding-crop-px 224, published 336"),
        ({"preset": "open"}, "preset open has no published figures"),
        ({"diffusion": "runwayml/other"}, f"--diffusion runwayml/other, published {DEFAULT_DIFFUSION}"),
        ({"images": 100}, "100 images, published 1,449"),
        ({"split": "train"}, "--split train, published val"),
        ({"request": {"given_labels": True}}, "--given-labels"),
        ({"request": {"text_embeddings": "words.safetensors"}}, "--text-embeddings"),
        ({"request": {"templates": "openai_imagenet_80"}}, "--templates openai_imagenet_80, published car"),
        ({"request": {"choice": MethodChoice("sclip")}}, "the package has those of CLIPer only"),
        (
            {"clip": replace(CLIP, name="ViT-B-16:laion400m_e32", pretrained="ViT-B-16:laion400m_e32")},
            "weights of ViT-B-16:laion400m_e32, published for OpenAI's ViT-B/16 and ViT-L/14",
        ),
        ({"clip": replace(CLIP, name="local-dir:x", pretrained="")}, "weights of local-dir:x, published for"),
    ],
)
def test_anything_else_has_no_published_figure_and_says_why(changes: dict[str, Any], difference: str) -> None:
    comparison = compare(**changes)
    assert comparison.published is None
    assert any(found.startswith(difference) for found in comparison.differences), comparison


@pytest.mark.parametrize(("name", "what"), [("cityscapes", "two square halves"), ("coco_object", "instance annot")])
def test_protocols_that_are_not_followed_are_named(name: str, what: str) -> None:
    comparison = compare(name)
    assert comparison.published is None
    assert what in comparison.differences[0]


def test_tables_name_the_differences() -> None:
    figures = {"title": "a", "published": None, "differs_from_published": ["--given-labels", "100 images"]}
    measured = ("miou", "pixel_accuracy", "mean_accuracy", "map", "f1", "precision", "recall")
    figures |= {"images_seen": 0, "coarser_grid": 2} | dict.fromkeys(measured, 1.0)
    text = markdown("voc21", [figures | {"seconds_per_image": 1.0}])
    assert "\n\nNo published figure for a: --given-labels; 100 images.\n" in text
    assert "\n\na: 2 panoramas were seen on a coarser grid than the other images" in text
