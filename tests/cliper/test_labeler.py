"""`cliper.Labeler` in a program: what it takes, what it gives, and what it refuses."""

import inspect
import io
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision
import torch
from PIL import Image, ImageColor
from pycocotools.coco import COCO

from cliper import Labeler, Result, to_coco
from cliper.labeler import asked_settings
from jobs.annotate import AnnotateOptions
from schemas.colours import class_colours
from schemas.embeddings import embeddings_to_bytes
from schemas.runs import labels_from_annotations
from tests.corpus.images import odd_images
from tests.support.corpora import decode_image, jpeg

ROOT = Path(__file__).parents[2]
WORDS = ["thing", "other: some other thing; another one", "last thing, with a comma"]
SETTINGS: dict[str, Any] = {
    "preset": "release", "shorter_side_px": 112, "logit_scale": 40.0, "score_threshold": 0.2,
    "background_threshold": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_clip: Path, tiny_diffusion: Path) -> dict[str, str]:
    return {"clip": f"local-dir:{tiny_clip}", "diffusion": str(tiny_diffusion)}


@pytest.fixture(scope="module")
def labeler(models: dict[str, str]) -> Labeler:
    return Labeler(WORDS, **models, **SETTINGS)


def same(one: Result, other: Result) -> bool:
    return one.scores == other.scores and one.annotations == other.annotations and (one.labels == other.labels).all()


def test_the_package_is_cheap_to_import() -> None:
    code = "import sys, cliper; dir(cliper); sys.exit(bool({'torch', 'numpy', 'PIL', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    with pytest.raises(ImportError):
        from cliper import nothing  # noqa: F401


def test_defaults_are_those_of_the_job() -> None:
    options = AnnotateOptions(input="", output="")
    assert asked_settings({"preset": options.models.preset}) == options.models.asked().settings
    defaults = {name: option.default for name, option in inspect.signature(Labeler).parameters.items()}
    assert defaults["preset"] == options.models.preset
    assert defaults["templates"] == options.templates
    assert defaults["precision"] == options.models.precision
    assert defaults["max_pixels"] == options.limits.max_pixels


class TestSources:
    """Images can be given in any of these forms."""

    def test_a_file(self, labeler: Labeler, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(jpeg(1))
        by_path, by_address, by_bytes = labeler([path, str(path), jpeg(1)])
        assert same(by_path, by_address)
        assert same(by_path, by_bytes)
        assert (by_path.name, by_bytes.name) == (str(path), "image")
        assert same(by_path, labeler(f"file://{path}"))
        assert labeler(path, name="mine").name == "mine"
        assert [result.name for result in labeler((path, path), name=["b", "c"])] == ["b", "c"]

    def test_pixels(self, labeler: Labeler) -> None:
        pixels = decode_image(jpeg(1))
        opaque = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
        results = labeler([pixels, Image.fromarray(pixels), opaque])
        assert same(results[0], results[1])
        assert same(results[0], results[2])
        grey = labeler([pixels[..., 0], pixels[..., :1]])
        assert same(*grey)

    def test_an_image_that_was_opened_keeps_its_orientation_and_name(self, labeler: Labeler, tmp_path: Path) -> None:
        path, exif = tmp_path / "turned.png", Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(decode_image(jpeg(1))).save(path, exif=exif)
        with Image.open(path) as image:
            result = labeler(image)
            assert image.size == (90, 60), "the caller's image is not changed"
        assert result.name == str(path)
        assert result.labels.shape == (90, 60)
        assert np.array_equal(result.image, labeler(path).image)

    @pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
    def test_arrays_that_are_none(self, labeler: Labeler, pixels: np.ndarray) -> None:
        with pytest.raises(ValueError, match="an array must be uint8"):
            labeler(pixels)

    @pytest.mark.parametrize("name", ["text.jpg", "broken.jpg"])
    def test_files_that_are_none(self, labeler: Labeler, tmp_path: Path, name: str) -> None:
        (tmp_path / "text.jpg").write_text("no image")
        (tmp_path / "broken.jpg").write_bytes(jpeg(1)[:800])
        with pytest.raises(ValueError, match=f"^{tmp_path}/{name}: the "):
            labeler(tmp_path / name)

    def test_files_that_are_not_there(self, labeler: Labeler, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"^image {tmp_path}/a\.jpg cannot be read: it does not exist$"):
            labeler(tmp_path / "a.jpg")

    def test_too_large(self, models: dict[str, str]) -> None:
        small = Labeler(WORDS, **models, **SETTINGS, max_pixels=100)
        with pytest.raises(ValueError, match=r"more than 100 pixels \(max_pixels\)$"):
            small(jpeg(1))

    def test_names_that_do_not_fit(self, labeler: Labeler) -> None:
        with pytest.raises(ValueError, match="a name for each of 1 images"):
            labeler([jpeg(1)], name=["a", "b"])


def test_several_numbers_are_a_list_or_a_tuple(models: dict[str, str]) -> None:
    for scales in ([1.0, 1.5], (1.0, 1.5)):
        assert Labeler(["cat"], background=["grass"], scales=scales, **models).spec.settings.sides_px[1] > 0


@pytest.mark.parametrize(
    ("vocab", "changes", "message"),
    [
        (["cat", "cat"], {}, r"^vocab: line 2: class 'cat' is already on line 1$"),
        ([], {}, r"^vocab: there is no class in it: write one class name per line$"),
        ("nowhere.txt", {}, r"^vocab nowhere.txt cannot be read: it does not exist$"),
        (None, {}, r"^vocab is missing: name a file .* \(or give text_embeddings\)$"),
        (["cat"], {"background": [""" : """]}, "^background: line 1: the class has no name$"),
        (["cat"], {"templates": ["photo"]}, "^templates: line 1 has no {}"),
        (["cat"], {"clip": "ViT-Z-99"}, "^CLIP model 'ViT-Z-99' is unknown"),
        (["cat"], {"diffusion": "local-dir:nowhere"}, "has no folder vae/"),
        (["cat"], {"head": 1.5}, "^head must be of type int, not 1.5$"),
        (["cat"], {"scales": [1, "2"]}, r"^scales must be numbers, not \[1, '2'\]$"),
        (["cat"], {"logit_scale": -1}, "^logit_scale must be between 0.0 and 10000.0, not -1$"),
        (
            ["cat"],
            {"presence_threshold": 0.4},
            "^presence_threshold has no effect with preset release: use score_thresh",
        ),
        (["cat"], {"device": "toaster"}, "^device 'toaster' is unknown"),
    ],
)
def test_wrong_requests(vocab: Any, changes: dict[str, Any], message: str, models: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        Labeler(vocab, **models | SETTINGS | changes)


WRONG_TYPES = {
    "make(['cat'])(7)": "an image must be a path, URL, bytes, array or PIL image, not int",
    "make([1])": "vocab must be the address of a file or a list of strings",
    "make(['cat'], preset='closed')": "preset must be one of open, release, paper, not 'closed'",
    "make(['cat'], precision='fp8')": "precision must be one of auto, bf16, fp16, fp32, not 'fp8'",
    "make(['cat'], profile='sea')": "profile must be one of objects, scene, street, not 'sea'",
}
TELL = """
import sys
from functools import partial
from cliper import Labeler

make = partial(Labeler, clip="demo", diffusion="demo")
for call in sys.argv[1:]:
    try:
        eval(call)
    except ValueError as error:
        print(error)
"""


def test_wrong_types() -> None:
    """In a process of its own, because types are checked in this one."""
    ended = subprocess.run([sys.executable, "-c", TELL, *WRONG_TYPES], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.splitlines() == list(WRONG_TYPES.values()), ended.stderr


def test_a_setting_that_does_not_exist(models: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="there is no setting 'colour'"):
        Labeler(WORDS, **models, colour="red")


def test_words_from_files_are_those_of_lines(models: dict[str, str], labeler: Labeler, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "templates.txt").write_text("a {}\n")
    (tmp_path / "words.safetensors").write_bytes(embeddings_to_bytes(labeler.spec.embeddings))
    from_files = Labeler(tmp_path / "vocab.txt", **models, **SETTINGS)
    assert from_files.spec.embeddings.sha256 == labeler.spec.embeddings.sha256
    ready = Labeler(None, **models, **SETTINGS, text_embeddings=tmp_path / "words.safetensors")
    assert ready.spec.embeddings.sha256 == labeler.spec.embeddings.sha256
    few = {"background": ["wall", "floor: floor; ground"]}
    listed, read = (
        Labeler(WORDS, **models, **SETTINGS, **few, templates=t) for t in (["a {}"], tmp_path / "templates.txt")
    )
    assert listed.spec.embeddings.sha256 == read.spec.embeddings.sha256
    assert listed.spec.embeddings.background_words == ("wall", "floor", "ground")


def test_a_labeler_travels_without_its_models(labeler: Labeler) -> None:
    here = labeler(jpeg(2))
    copy = pickle.loads(pickle.dumps(labeler))
    assert "segmenter" in vars(labeler)
    assert "segmenter" not in vars(copy)
    assert same(copy(jpeg(2)), here)


def test_torch_is_left_as_it_was(labeler: Labeler) -> None:
    before = torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    labeler(jpeg(2))
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == before


class TestResults:
    """Every view of a result says the same."""

    @pytest.fixture(scope="class")
    def results(self, labeler: Labeler) -> list[Result]:
        found: list[Result] = labeler([jpeg(seed) for seed in range(6)], name=[f"{seed}.jpg" for seed in range(6)])
        assert any(len(result.annotations) > 1 for result in found), "the case is not worth testing with single masks"
        return found

    def test_they_are_frozen(self, results: list[Result]) -> None:
        with pytest.raises(FrozenInstanceError):
            results[0].name = "other"  # type: ignore[misc]
        assert "scores" in repr(results[0])
        assert "annotations" not in repr(results[0])

    def test_labels_and_masks(self, results: list[Result]) -> None:
        for result in results:
            assert result.classes == ("thing", "other", "last thing, with a comma")
            assert tuple(result.scores) == result.classes
            assert result.probabilities is None
            height, width = result.image.height, result.image.width
            assert np.array_equal(result.labels, labels_from_annotations(result.annotations, height, width))
            assert set(np.unique(result.labels)) - {0} == {result.classes.index(name) + 1 for name in result.masks}
            for name, mask in result.masks.items():
                assert np.array_equal(mask, result.labels == result.classes.index(name) + 1)

    def test_coco(self, results: list[Result]) -> None:
        coco = COCO()
        coco.dataset = to_coco(results)
        coco.createIndex()
        assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == [r.name for r in results]
        for image_id, result in enumerate(results, start=1):
            entries = coco.loadAnns(coco.getAnnIds(image_id))
            masks = {coco.cats[entry["category_id"]]["name"]: coco.annToMask(entry).astype(bool) for entry in entries}
            assert masks.keys() == result.masks.keys()
            assert all(np.array_equal(masks[name], mask) for name, mask in result.masks.items())
        alone = results[0].to_coco()
        assert len(alone["images"]) == 1
        with pytest.raises(ValueError, match="needs results"):
            to_coco([])

    def test_supervision(self, results: list[Result]) -> None:
        for result in results:
            detections = result.to_supervision()
            assert len(detections) == len(result.masks)
            if not len(detections):
                continue
            assert detections.data["class_name"].tolist() == list(result.masks)
            assert [result.classes[index] for index in detections.class_id] == list(result.masks)
            assert detections.confidence.tolist() == [result.scores[name] for name in result.masks]
            boxes = supervision.mask_to_xyxy(detections.mask)  # the last pixel, and not the border behind it
            assert np.array_equal(detections.xyxy, boxes + np.array([0, 0, 1, 1]))

    def test_overlays(self, results: list[Result]) -> None:
        for result in results:
            pixels = np.asarray(result.image)
            assert np.array_equal(result.overlay(alpha=0, names=False), pixels)
            drawn = np.asarray(result.overlay(alpha=1, names=False))
            assert np.array_equal(drawn[result.labels == 0], pixels[result.labels == 0])
            for label, colour in enumerate(class_colours(3), start=1):
                assert (drawn[result.labels == label] == ImageColor.getrgb(colour)).all()
            with Image.open(io.BytesIO(result._repr_png_())) as shown:
                assert shown.size == result.image.size
            assert (np.asarray(result.overlay()) != np.asarray(result.overlay(names=False))).any() == bool(result.masks)
        with pytest.raises(ValueError, match="alpha must be between 0 and 1, not 2"):
            results[0].overlay(alpha=2)


def test_odd_images_have_overlays(labeler: Labeler) -> None:
    for data, status in odd_images().values():
        if status == "ok":
            result = labeler(data)
            assert result.overlay().size == result.image.size == result.labels.shape[::-1]
