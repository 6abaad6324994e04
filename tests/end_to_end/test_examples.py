"""A real job with examples of the drawn world: a class without words is found, and resuming needs no examples anew."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliper import Labeler
from demo.world.names import CATEGORY, NAMES
from demo.world.scene import Scene, draw
from jobs.annotate import main
from jobs.evaluate import main as evaluate
from schemas.embeddings import embeddings_from_bytes
from schemas.runs import labels_from_annotations
from tests.support.corpora import write_folder
from tests.support.jobs import OutputReader, SharedRay, refusal

SHOWN = "snow"
"""Not among the words of these tests."""
WORDS = [f"{name}:" if name == SHOWN else name for name in NAMES]
LABEL = CATEGORY[SHOWN]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def is_shown(scene: Scene) -> np.ndarray:
    return scene.labels == LABEL


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Landscapes, every other one with snow; the first six are for examples."""
    drawn = [draw(seed) for seed in range(7_000, 7_080)]
    snowy = [scene for scene in drawn if is_shown(scene).mean() > 0.05][:6]
    others = [scene for scene in drawn if not is_shown(scene).any()][:6]
    pairs = [scene for pair in zip(snowy, others, strict=True) for scene in pair]
    return {f"{number:02}": scene for number, scene in enumerate(pairs)}


@pytest.fixture(scope="module")
def examples(scenes: dict[str, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = list(scenes.items())[:6]
    images = {f"images/{name}.png": png(scene.image) for name, scene in chosen}
    masks = {f"masks/{name}.png": png(is_shown(scene).astype(np.uint8)) for name, scene in chosen}
    return write_folder(tmp_path_factory.mktemp("examples"), images | masks | {"classes.txt": SHOWN.encode()})


def test_a_class_that_only_examples_show(
    ray_here: SharedRay, scenes: dict[str, Scene], examples: Path, tmp_path: Path
) -> None:
    measured = dict(list(scenes.items())[6:])
    folder = write_folder(tmp_path / "images", {f"{name}.png": png(scene.image) for name, scene in measured.items()})
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    flags = ["--vocab", str(tmp_path / "vocab.txt"), "--clip", "demo", "--diffusion", "none", "--background", "none"]
    output = str(tmp_path / "labels")
    ended = ray_here.annotate(str(folder), output, *flags, "--examples", str(examples))
    assert ended.returncode == 0, ended.stderr

    rows = OutputReader(output, {}).rows()
    hits = union = 0
    for name, scene in measured.items():
        row = rows[f"{name}.png"]
        found = labels_from_annotations(row["annotations"], row["height"], row["width"]) == LABEL
        hits += (found & is_shown(scene)).sum()
        union += (found | is_shown(scene)).sum()
    assert hits / union > 0.3

    embeddings = embeddings_from_bytes(OutputReader(output, {}).files()["vocabulary.safetensors"])
    assert embeddings.wordless == (SHOWN,)
    assert embeddings.visual is not None
    labeler = Labeler(WORDS, clip="demo", diffusion="none", background="none", examples=examples)
    assert labeler.spec.embeddings.sha256 == embeddings.sha256
    assert labeler(folder / "06.png").annotations == rows["06.png"]["annotations"]

    again = ray_here.annotate(str(folder), output, *flags, "--examples", str(examples))
    assert "Already finished" in again.stdout
    reused = ray_here.annotate(
        str(folder), str(tmp_path / "again"), "--text-embeddings", f"{output}/vocabulary.safetensors",
        "--clip", "demo", "--diffusion", "none",
    )  # fmt: skip
    assert reused.returncode == 0, reused.stderr
    theirs = OutputReader(str(tmp_path / "again"), {}).rows()
    assert {name: row["annotations"] for name, row in theirs.items()} == {
        name: row["annotations"] for name, row in rows.items()
    }
    refused = ray_here.annotate(str(folder), output, *flags)
    assert refused.returncode == 2, "without examples it is another request"


def test_an_evaluation_with_examples(
    ray_here: SharedRay, scenes: dict[str, Scene], examples: Path, tmp_path: Path
) -> None:
    measured = list(scenes.items())[6:8]
    images = {f"images/{name}.png": png(scene.image) for name, scene in measured}
    masks = {f"masks/{name}.png": png(scene.labels) for name, scene in measured}
    folder = write_folder(tmp_path / "world", images | masks | {"classes.txt": "\n".join(NAMES).encode()})
    request = ["--dataset", "folder", "--images", f"{folder}/images", "--masks", f"{folder}/masks"]
    request += ["--classes", f"{folder}/classes.txt", "--clip", "demo", "--diffusion", "none"]
    ended = ray_here.run(evaluate, *request, "--examples", str(examples), "--output", str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    (output,) = (tmp_path / "out").iterdir()
    embeddings = embeddings_from_bytes((output / "vocabulary.safetensors").read_bytes())
    assert embeddings.visual is not None
    assert embeddings.visual.names == (SHOWN,)
    assert "examples_sha256" in json.loads((output / "manifest.json").read_text())["vocabulary"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--examples", "{tmp}"], "--examples {tmp}/images: there are no images in it"),
        ([], "line 6: class 'snow' has an empty query"),
        (["--examples", "{examples}", "--method", "maskclip"], "--examples is for --method cliper, not maskclip"),
    ],
)
def test_wrong_requests(flags: list[str], message: str, examples: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    folder = write_folder(tmp_path / "in", {"a.png": png(np.zeros((48, 48, 3), np.uint8))})
    request = ["--input", str(folder), "--output", str(tmp_path / "out"), "--vocab", str(tmp_path / "vocab.txt")]
    given = [flag.format(tmp=tmp_path, examples=examples) for flag in flags]
    said = refusal(main, *request, "--clip", "demo", "--diffusion", "none", *given)
    assert message.format(tmp=tmp_path) in said
