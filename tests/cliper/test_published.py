"""The published facts: complete, in range, and those of the document they come from."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from cliper.published import Benchmark, find_benchmark, read_published
from cliper.settings import MethodSettings
from cliper.text import TEMPLATE_SETS

SOURCE = os.environ.get("CLIPER_PUBLISHED")


@pytest.fixture(params=tuple(read_published()))
def benchmark(request: pytest.FixtureRequest) -> Benchmark:
    return find_benchmark(request.param)


def test_names() -> None:
    with pytest.raises(ValueError, match="no benchmark 'voc22': choose one of voc21, voc20"):
        find_benchmark("voc22")


@pytest.mark.parametrize(
    ("name", "classes", "background_queries", "has_background"),
    [
        ("voc21", 20, 25, True),
        ("voc20", 20, 25, False),
        ("context60", 59, 1, True),
        ("context59", 59, 1, False),
        ("coco_object", 80, 23, True),
        ("coco_stuff", 171, 1, False),
        ("ade20k", 150, 1, False),
        ("cityscapes", 19, 1, False),
    ],
)
def test_counts(name: str, classes: int, background_queries: int, has_background: bool) -> None:
    benchmark = find_benchmark(name)
    assert (benchmark.name, len(benchmark.classes)) == (name, classes)
    assert len(benchmark.background_queries) == background_queries
    assert benchmark.has_background is has_background
    assert 255 in benchmark.ignore_labels


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        ("voc21", 14, "person with clothes, people, human"),
        ("context60", 58, "wood"),
        ("coco_object", 0, "person with cloth people human"),
        ("coco_object", 79, "toothbrush"),
        ("coco_stuff", 80, "banner"),
        ("ade20k", 149, "flag"),
        ("cityscapes", 18, "bicycle"),
    ],
)
def test_class_strings(name: str, number: int, text: str) -> None:
    assert find_benchmark(name).classes[number] == text


@pytest.mark.parametrize(
    ("name", "patch_size_px", "field", "value"),
    [
        ("voc21", 16, "score_threshold", 0.7),
        ("voc21", 14, "score_threshold", 0.5),
        ("voc20", 14, "background_threshold", 0.0001),
        ("voc20", 32, "background_threshold", 0.001),
        ("context60", 14, "templates", "openai_imagenet_80"),
        ("coco_object", 14, "select_layer", -2),
        ("ade20k", 16, "logit_scale", 100),
        ("cityscapes", 16, "shorter_side_px", 560),
        ("cityscapes", 14, "sliding_crop_px", 224),
    ],
)
def test_settings(name: str, patch_size_px: int, field: str, value: object) -> None:
    assert getattr(find_benchmark(name).encoder(patch_size_px), field) == value


@pytest.mark.parametrize(
    ("name", "patch_size_px", "result", "miou"),
    [
        ("voc21", 16, "paper_full", 65.9),
        ("voc21", 14, "release_sliding_full", 72.2),
        ("coco_stuff", 14, "release_without_refinement", 26.3),
        ("cityscapes", 14, "paper_full", None),
    ],
)
def test_results(name: str, patch_size_px: int, result: str, miou: float | None) -> None:
    assert find_benchmark(name).encoder(patch_size_px).published_miou[result] == miou


def test_windows_have_thresholds_of_their_own() -> None:
    """44.7 and 39.5 were published with them."""
    for name, plain, windows in [("coco_object", 0.5, 0.4), ("context60", 0.3, 0.2), ("voc21", 0.4, 0.4)]:
        settings = find_benchmark(name).encoder(14)
        assert (settings.background_threshold, settings.with_windows().background_threshold) == (plain, windows)


def test_no_query_is_given_twice(benchmark: Benchmark) -> None:
    for queries in (benchmark.classes, benchmark.background_queries):
        assert len(set(queries)) == len(queries)
        assert all(query == query.strip() and query for query in queries)


@pytest.mark.parametrize(("patch_size_px", "blocks"), [(16, 12), (14, 24)])
def test_settings_suit_the_method(patch_size_px: int, blocks: int, benchmark: Benchmark) -> None:
    published = asdict(benchmark.encoder(patch_size_px))
    assert 0 < (published.pop("sliding_background_threshold") or 0.5) < 1
    assert published.pop("templates") in TEMPLATE_SETS
    assert all(miou is None or 0 < miou < 100 for miou in published.pop("published_miou").values())
    MethodSettings(**published, windows="average").check_encoder(blocks, patch_size_px)


def test_with_and_without_background_are_the_same_classes() -> None:
    for with_background, without in [("voc21", "voc20"), ("context60", "context59")]:
        assert find_benchmark(with_background).classes == find_benchmark(without).classes


@pytest.mark.skipif(not SOURCE, reason="CLIPER_PUBLISHED is not set to the document that the facts come from")
def test_everything_is_as_in_the_source() -> None:
    source = json.loads(Path(str(SOURCE)).read_text(encoding="utf-8"))
    assert tuple(source["templates"]["car"]) == TEMPLATE_SETS["car"]
    assert tuple(source["datasets"]) == tuple(read_published())
    for name, facts in source["datasets"].items():
        benchmark = find_benchmark(name)
        assert list(benchmark.classes) == facts["classes"]
        assert list(benchmark.background_queries) == facts["background_queries"]
        assert benchmark.ignore_labels == set(facts["ignore_labels"])
        ours = {encoder: asdict(settings) for encoder, settings in benchmark.encoders.items()}
        for settings in ours.values():
            settings.pop("sliding_background_threshold")
        assert ours == facts["encoders"]
