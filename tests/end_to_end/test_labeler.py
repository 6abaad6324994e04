"""`cliper.Labeler` gives the rows of the job to the last bit, alone and in a Ray Data dataset of one's own."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from cliper import Labeler
from cluster.labeler import LabelerActor
from demo.world.names import NAMES
from demo.world.scene import draw
from schemas.rows import ROW_SCHEMA
from tests.support.corpora import sample_images, write_folder
from tests.support.jobs import VOCABULARY, OutputReader, SharedRay, tiny_flags

COMPARED = ("annotations", "class_scores", "class_probabilities", "lost_to", "refined_classes", "width", "height")


def drawn_images() -> dict[str, bytes]:
    """A photograph-like JPEG, an upright one that EXIF turns, a grey PNG and a palette PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [Image.fromarray(draw(seed, 120, 160).image) for seed in range(4)]
    files: dict[str, bytes] = {}
    for name, image, options in (
        ("plain.jpg", images[0], {"quality": 92}),
        ("turned.jpg", images[1], {"quality": 92, "exif": exif}),
        ("grey.png", images[2].convert("L"), {}),
        ("palette.png", images[3].convert("P"), {}),
    ):
        file = io.BytesIO()
        image.save(file, "PNG" if name.endswith("png") else "JPEG", **options)
        files[name] = file.getvalue()
    return files


def assert_same(row: dict[str, Any], columns: dict[str, Any]) -> None:
    for name in COMPARED:
        assert row[name] == columns[name], name


def columns_of(labeler: Labeler, path: Path) -> dict[str, Any]:
    """A result in a row's columns."""
    result = labeler(path)
    probabilities, refined = result.probabilities, result.refined
    position = {name: index for index, name in enumerate(result.classes, start=1)}
    return {
        "annotations": result.annotations,
        "class_scores": list(result.scores.values()),
        "class_probabilities": None if probabilities is None else list(probabilities.values()),
        "lost_to": [{"category_id": position[name], "background": word} for name, word in result.lost_to.items()],
        "refined_classes": None if refined is None else [position[name] for name in refined],
        "width": result.image.width,
        "height": result.image.height,
    }


def test_the_rows_of_the_job_with_its_defaults(ray_here: SharedRay, tmp_path: Path) -> None:
    """The demo's models, preset open, packaged background words of which some mean the same as a class."""
    folder = write_folder(tmp_path / "images", drawn_images())
    (tmp_path / "vocab.txt").write_text("".join(f"{name}\n" for name in NAMES))
    flags = ["--vocab", str(tmp_path / "vocab.txt"), "--clip", "demo", "--diffusion", "demo"]
    ended = ray_here.annotate(str(folder), str(tmp_path / "labels"), *flags)
    assert ended.returncode == 0, ended.stderr
    reader, labeler = OutputReader(str(tmp_path / "labels"), {}), Labeler(NAMES, clip="demo", diffusion="demo")
    assert reader.json("manifest.json")["background_left_out"]
    rows = reader.rows()
    assert any(row["annotations"] for row in rows.values())
    for name in drawn_images():
        assert_same(rows[name], columns_of(labeler, folder / name))


def test_the_rows_of_the_job_with_other_settings(
    ray_here: SharedRay, tmp_path: Path, tiny_clip: Path, tiny_diffusion: Path
) -> None:
    folder = write_folder(tmp_path / "images", sample_images(5))
    flags = [*tiny_flags(tmp_path, tiny_clip, tiny_diffusion), "--background", "none", "--skip-absent"]
    ended = ray_here.annotate(str(folder), str(tmp_path / "labels"), *flags)
    assert ended.returncode == 0, ended.stderr
    labeler = tiny_labeler(tiny_clip, tiny_diffusion, background="none", skip_absent=True)
    rows = OutputReader(str(tmp_path / "labels"), {}).rows()
    for name in sample_images(5):
        assert_same(rows[name], columns_of(labeler, folder / name))


def tiny_labeler(clip: Path, diffusion: Path, **options: Any) -> Labeler:
    """A labeler with the settings of `tests.support.jobs.tiny_flags`."""
    return Labeler(
        VOCABULARY.splitlines(), f"local-dir:{clip}", str(diffusion), preset="release", shorter_side_px=112,
        logit_scale=40.0, score_threshold=0.2, background_threshold=0.3, **options,
    )  # fmt: skip


@pytest.mark.usefixtures("ray_here")
class TestDatasets:
    """Datasets of one's own get the columns of the rows."""

    @pytest.fixture(scope="class")
    def labeler(self, tiny_clip: Path, tiny_diffusion: Path) -> Labeler:
        return tiny_labeler(tiny_clip, tiny_diffusion)

    def test_files_of_which_some_are_damaged(self, labeler: Labeler, tmp_path: Path) -> None:
        images = sample_images(5)
        folder = write_folder(tmp_path, images)
        files = [{"path": name, "bytes": data, "caption": f"of {name}"} for name, data in images.items()]
        bad = [
            {"path": name, "bytes": data, "caption": "bad"} for name, data in (("text", b"no image"), ("hole", None))
        ]
        ds = ray.data.from_items([*files[:2], *bad, *files[2:]], override_num_blocks=1)
        ds = ds.map_batches(LabelerActor, fn_constructor_args=[labeler], batch_size=3, concurrency=1)
        rows = {row["path"]: row for row in ds.take_all()}
        assert rows.keys() == images.keys() | {"text", "hole"}
        for name in images:
            assert rows[name]["status"] == "ok"
            assert rows[name]["caption"] == f"of {name}"
            assert_same(rows[name], columns_of(labeler, folder / name))
        assert {name: rows[name]["status"] for name in ("text", "hole")} == {"text": "not_an_image", "hole": "empty"}
        assert rows["text"]["error"] == "text: the bytes are no image in a known format"
        assert rows["text"]["annotations"] is rows["hole"]["class_scores"] is None
        schema = ds.schema().base_schema
        assert all(schema.field(name).type == ROW_SCHEMA.field(name).type for name in COMPARED)

    def test_arrays(self, labeler: Labeler) -> None:
        pixels = [draw(seed, 60, 80 + 4 * seed).image for seed in range(3)]
        ds = ray.data.from_items([{"image": image} for image in pixels], override_num_blocks=1)
        ds = ds.map_batches(LabelerActor, fn_constructor_args=[labeler], batch_size=2, concurrency=1)
        rows = {row["width"]: row for row in ds.take_all()}
        for image in pixels:
            result = labeler(image)
            assert rows[image.shape[1]]["annotations"] == result.annotations
            assert np.array_equal(rows[image.shape[1]]["image"], image)

    def test_a_column_of_another_name(self, labeler: Labeler) -> None:
        actor = LabelerActor(labeler, column="photo")
        (data,) = sample_images(1).values()
        added = actor({"photo": np.array([{"bytes": data, "path": "a"}], object)})
        assert added["annotations"].to_pylist() == [labeler(data).annotations]
        with pytest.raises(ValueError, match="no column is called image, bytes"):
            LabelerActor(labeler)({"photo": np.array([data], object)})
