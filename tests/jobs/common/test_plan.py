"""The plan that a job prints: images, speed, time and cost."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from cluster.corpus.inputs import open_input
from cluster.corpus.sources import list_corpus
from cluster.sizing import Cluster, Resources
from jobs.common import plan
from jobs.common.options import MethodOptions
from jobs.common.plan import PlanOptions, count_images, expected_speed, show_plan
from schemas.errors import RequestError
from tests.support.corpora import sample_images, write_tars

RESULTS = Path(__file__).parents[3] / "benchmarks/results.csv"


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    return Path(write_tars(tmp_path / "in", sample_images(12), 4))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_packaged_speeds_are_the_newest_measurements() -> None:
    """If this fails, copy the newest row from benchmarks/results.csv to jobs/common/speeds.csv."""
    measured = [row for row in read_csv(RESULTS) if (row["stage"], row["variant"]) == ("total", "fast")]
    speeds = read_csv(plan.SPEEDS)
    assert len(speeds) == len({(row["device"], row["clip"], row["compensation"]) for row in speeds})
    for speed in speeds:
        same = [row for row in measured if all(row[key] == speed[key] for key in ("device", "clip", "compensation"))]
        newest = max(same, key=lambda row: (row["date"], -int(row["classes"])))
        assert speed.items() <= newest.items()


def test_images_are_counted_or_estimated_from_a_shard(corpus_folder: Path, tmp_path: Path) -> None:
    root = open_input(str(corpus_folder))
    assert count_images(list_corpus(root, "auto", None)) == (12, "estimated: shards: 3, in 00001.tar: 4")
    assert count_images(list_corpus(root, "auto", None, limit=5)) == (5, "counted")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).touch()
    assert count_images(list_corpus(open_input(str(tmp_path / "folder")), "auto", None))[0] == 2


@pytest.mark.parametrize("clip", ["ViT-L-14", "ViT-L/14", "ViT-L-14:openai", "ViT-L-14@abc"])
def test_measured_speeds_are_found_by_model_and_device(clip: str) -> None:
    measured = [float(row["images_per_second"]) for row in read_csv(plan.SPEEDS) if row["clip"] == "ViT-L-14"]
    with_compensation = expected_speed(PlanOptions(), MethodOptions(clip=clip), on_gpu=False)
    without = expected_speed(PlanOptions(), MethodOptions(clip=clip, diffusion="none"), on_gpu=False)
    assert with_compensation
    assert without
    assert {with_compensation.images_per_second, without.images_per_second} <= set(measured)
    assert with_compensation.images_per_second < without.images_per_second
    assert "two CPU cores" in with_compensation.source


def test_speeds_that_were_not_measured_are_unknown_unless_given() -> None:
    demo = MethodOptions(clip="demo", diffusion="demo")
    assert expected_speed(PlanOptions(), demo, on_gpu=False) is None
    for changes in ({"shorter_side_px": 448}, {"flip": True}, {"scales": (1.0, 1.5)}, {"windows": "stitched"}):
        larger = MethodOptions(clip="ViT-L-14", **changes)
        assert expected_speed(PlanOptions(), larger, on_gpu=False) is None
    given = expected_speed(PlanOptions(plan=True, actor_images_per_second=3.0), demo, on_gpu=True)
    assert given
    assert given.images_per_second == 3.0


def test_time_and_cost_follow_from_speed(corpus_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cluster, "now", lambda: Cluster(2, 8, 2, 9e9, 5e9))
    corpus = list_corpus(open_input(str(corpus_folder)), "auto", None)
    options = PlanOptions(plan=True, actor_images_per_second=0.001, actor_price_per_hour=3.0)
    console = Console(file=io.StringIO(), width=200)
    show_plan(options, MethodOptions(), corpus, Resources(2, 1.0, 2), 8, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1:40:00 (computed" in printed, "12 images at 0.002 images per second"
    assert "10.00 (computed)" in printed, "two actors for 5/3 hours"
    assert "enough for 5 tasks" in printed, "9 GB at 1.8 GB each"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions(plan=True, actor_price_per_hour=0), "--actor-price-per-hour must be above 0"),
        (PlanOptions(plan=True, actor_images_per_second=float("nan")), "--actor-images-per-second must be above 0"),
        (PlanOptions(actor_images_per_second=1.0), "--actor-images-per-second belongs to --plan"),
    ],
)
def test_wrong_numbers_are_one_sentence(options: PlanOptions, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        options.check()
