"""The shipped models are as good as recorded, and the demo runs from the drawing to the page."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from cliper.models import DEMO_MODEL, find_clip
from demo.corpus import HEIGHT_PX, WIDTH_PX, seed_of, write_corpus
from demo.evaluate import EvaluateOptions, evaluate
from demo.world.names import NAMES
from jobs.request import find_models
from schemas.vocabulary import parse_vocabulary

ROOT = Path(__file__).parents[2]
RECORDED_MIOU = 0.711
"""Mean IoU of the shipped models on the first 40 pictures, as measured when they were committed."""


def test_the_vocabulary_holds_every_name() -> None:
    classes = parse_vocabulary((ROOT / "demo/vocab.txt").read_text())
    assert tuple(entry.name for entry in classes) == NAMES


def test_the_shipped_models_are_small_and_not_pickled() -> None:
    files = [path for path in DEMO_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".svg"}
    assert find_clip("demo").revision.startswith("sha256:")


def test_shards_hold_the_drawn_pictures(tmp_path: Path) -> None:
    write_corpus(tmp_path, range(5, 12), pictures_per_shard=3)
    members = []
    for path in sorted(tmp_path.iterdir()):
        with tarfile.open(path) as shard:
            for member in shard:
                members.append(seed_of(f"{path.name}/{member.name}"))
                with Image.open(shard.extractfile(member)) as image:
                    assert image.size == (WIDTH_PX, HEIGHT_PX)
    assert members == list(range(5, 12))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_labels_stay_as_right_as_recorded() -> None:
    options = EvaluateOptions(pictures=40)
    figures = evaluate(options, find_models(options.method))[0].figures(0.0)
    assert figures.miou == pytest.approx(RECORDED_MIOU, abs=0.02)
    assert figures.map > 0.85


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.xdist_group("ray")
def test_the_demo_runs_from_drawing_to_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--folder", str(tmp_path), "--pictures", "10", "--pictures-per-shard", "4"]
    demo = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert demo.returncode == 0, demo.stderr
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures.keys() >= {"miou", "map", "pictures", "seconds"}
    assert figures["pictures"] == 10
    assert figures["miou"] > 0.3
    rows = [row for path in (tmp_path / "labels").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert sorted(seed_of(row["image_id"]) for row in rows) == list(range(10))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure>") == 10
    assert f"{100 * figures['miou']:.1f} %" in page
