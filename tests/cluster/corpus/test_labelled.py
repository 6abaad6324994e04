"""Labelled data sets: what their makers wrote is read back, and what is wrong is said."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem

from cliper.ground_truth import IGNORED, OUTSIDE
from cliper.published import find_benchmark
from cluster.corpus.labelled import LabelledCorpus, list_index_masks, list_labelled
from cluster.corpus.layouts import BENCHMARKS, find_layout
from cluster.corpus.limits import DEFAULT_LIMITS
from cluster.corpus.sources import read_shard
from cluster.storage import Location, open_location
from schemas.errors import DecodeError, RequestError
from schemas.rows import Status
from tests.support.corpora import decode_image
from tests.support.labelled_world import BACKGROUND, MAKERS, UNLABELLED, export, png_bytes, read_mask
from tests.support.s3_server import BUCKET, s3_client, seaweed

SIZE_HW = (16, 20)


def scenes(name: str, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of one grey each; their ground truths have every class, background and unlabelled pixels."""
    labels = np.resize([*range(len(MAKERS[name].values)), BACKGROUND, UNLABELLED], SIZE_HW)
    rng = np.random.default_rng(0)
    return [
        (np.full((*SIZE_HW, 3), 40 + 60 * index, np.uint8), rng.permuted(rng.permuted(labels, axis=0), axis=1))
        for index in range(count)
    ]


def at(root: Path | str) -> Location:
    return open_location(str(root), "--root")


def list_exported(name: str, root: Path | str, limit: int | None = None) -> LabelledCorpus:
    return list_labelled(name.removesuffix("_train_ids"), at(root), "val", limit, DEFAULT_LIMITS)


def ids_of(labelled: LabelledCorpus) -> list[str]:
    return [shard.name for shard in labelled.corpus.shards]


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_exported_is_read_back(name: str, tmp_path: Path) -> None:
    images = scenes(name)
    ids = export(name, tmp_path, images)
    labelled = pickle.loads(pickle.dumps(list_exported(name, tmp_path)))
    assert ids_of(labelled) == ids
    assert labelled.corpus.format == "folder"
    for shard, (image, truth) in zip(labelled.corpus.shards, images, strict=True):
        (record,) = read_shard(labelled.corpus, shard)
        assert record.data is not None
        np.testing.assert_allclose(decode_image(record.data), image, atol=4 if shard.name.endswith(".jpg") else 0)
        read = read_mask(labelled, record.image_id)
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, MAKERS[name].expected(truth))


@pytest.mark.parametrize("name", MAKERS)
def test_training_splits(name: str, tmp_path: Path) -> None:
    ids = export(name, tmp_path / "val", scenes(name))
    for path in [path for path in (tmp_path / "val").rglob("*") if path.is_file()]:
        within = path.relative_to(tmp_path / "val").as_posix()
        moved = tmp_path / "train" / within.replace("validation", "training").replace("val", "train")
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    labelled = list_labelled(name.removesuffix("_train_ids"), at(tmp_path / "train"), "train")
    assert ids_of(labelled) == [name.replace("validation", "training").replace("val", "train") for name in ids]
    assert labelled.has_masks()
    with pytest.raises(RequestError):
        list_exported(name, tmp_path / "train")


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("voc21", {0: 0, 1: 1, 20: 20, 21: OUTSIDE, 254: OUTSIDE, 255: IGNORED}),
        ("voc20", {0: IGNORED, 1: 1, 20: 20, 21: OUTSIDE, 255: IGNORED}),
        ("context60", {0: 0, 1: 1, 59: 59, 60: OUTSIDE, 255: IGNORED}),
        ("context59", {0: IGNORED, 1: 1, 59: 59, 60: OUTSIDE, 255: IGNORED}),
        ("coco_stuff", {0: 1, 10: 11, 12: 12, 89: 80, 91: 81, 181: 171, 11: OUTSIDE, 182: OUTSIDE, 255: IGNORED}),
        ("coco_object", {0: 1, 10: 11, 12: 12, 89: 80, 91: 0, 181: 0, 255: 0}),
        ("ade20k", {0: IGNORED, 1: 1, 150: 150, 151: OUTSIDE, 255: IGNORED}),
        ("cityscapes", {7: 1, 11: 3, 28: 16, 31: 17, 33: 19, 0: IGNORED, 29: IGNORED, 34: IGNORED, 255: IGNORED}),
    ],
)
def test_what_makers_values_stand_for(name: str, classes: dict[int, int]) -> None:
    lookup = find_layout(name).masks[0].lookup
    assert {value: lookup[value] for value in classes} == classes


@pytest.mark.parametrize("name", BENCHMARKS)
def test_values_stand_for_the_published_classes(name: str) -> None:
    benchmark = find_benchmark(name)
    for masks in find_layout(name).masks:
        indices = set(masks.lookup.tolist()) - {IGNORED, OUTSIDE}
        assert indices - {0} == set(range(1, len(benchmark.classes) + 1))
        assert (0 in indices) is benchmark.has_background


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("voc21", 21),
        ("voc20", 254),
        ("context60", 60),
        ("context59", 60),
        ("coco_stuff", 11),
        ("coco_stuff_train_ids", 171),
        ("ade20k", 151),
        ("cityscapes_train_ids", 19),
    ],
)
def test_a_value_of_no_class_is_named(name: str, value: int, tmp_path: Path) -> None:
    ids = export(name, tmp_path, scenes(name, 2))
    labelled = list_exported(name, tmp_path)
    mask = Path(labelled.mask_of(ids[1]).path)
    mask.write_bytes(png_bytes(np.array([[1, value]], np.uint8)))
    read_mask(labelled, ids[0])
    with pytest.raises(DecodeError, match=f"^the value {value} stands for no class$"):
        read_mask(labelled, ids[1])


@pytest.mark.parametrize(
    ("name", "own_folder", "root"),
    [
        ("voc21", "VOCdevkit/VOC2012", ""),
        ("voc21", "VOCdevkit/VOC2012", "VOCdevkit"),
        ("voc20", "VOCdevkit/VOC2012", "VOCdevkit/VOC2012"),
        ("context60", "VOCdevkit/VOC2010", ""),
        ("context60", "VOCdevkit/VOC2010", "VOCdevkit"),
        ("context59", "VOCdevkit/VOC2010", "VOCdevkit/VOC2010"),
        ("ade20k", "ADEChallengeData2016", ""),
        ("ade20k", "ADEChallengeData2016", "ADEChallengeData2016"),
    ],
)
def test_the_root_may_lie_above(name: str, own_folder: str, root: str, tmp_path: Path) -> None:
    images = scenes(name)
    ids = export(name, tmp_path / own_folder, images)
    labelled = list_exported(name, tmp_path / root)
    assert ids_of(labelled) == [str((tmp_path / own_folder / image).relative_to(tmp_path / root)) for image in ids]
    np.testing.assert_array_equal(read_mask(labelled, ids_of(labelled)[2]), MAKERS[name].expected(images[2][1]))


@pytest.mark.parametrize("images_folder", ["images/val2017", "val2017"])
@pytest.mark.parametrize("masks_folder", ["stuffthingmaps_trainval2017", "stuffthingmaps", "annotations"])
@pytest.mark.parametrize("name", ["coco_stuff", "coco_stuff_train_ids", "coco_object", "coco_object_train_ids"])
def test_places_of_coco(name: str, masks_folder: str, images_folder: str, tmp_path: Path) -> None:
    images = scenes(name, 2)
    export(name, tmp_path / "exported", images)
    (tmp_path / "root" / images_folder).parent.mkdir(parents=True)
    shutil.move(tmp_path / "exported/images/val2017", tmp_path / "root" / images_folder)
    shutil.move(tmp_path / "exported" / Path(MAKERS[name].mask).parts[0], tmp_path / "root" / masks_folder)
    labelled = list_exported(name, tmp_path / "root")
    assert ids_of(labelled) == [f"{images_folder}/{index:012}.jpg" for index in range(2)]
    np.testing.assert_array_equal(read_mask(labelled, ids_of(labelled)[1]), MAKERS[name].expected(images[1][1]))


def test_the_place_of_masks_is_found_though_the_first_is_missing(tmp_path: Path) -> None:
    images = scenes("cityscapes_train_ids")
    ids = export("cityscapes_train_ids", tmp_path, images)
    Path(list_exported("cityscapes", tmp_path).mask_of(ids[0]).path).unlink()
    labelled = list_exported("cityscapes", tmp_path)
    with pytest.raises(DecodeError, match=r"^it does not exist"):
        read_mask(labelled, ids[0])
    np.testing.assert_array_equal(read_mask(labelled, ids[1]), MAKERS["cityscapes"].expected(images[1][1]))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("voc21", "JPEGImages/2007_000009.jpg"),
        ("context60", "JPEGImages/2008_000009.jpg"),
        ("coco_stuff", "images/train2017/000000000000.jpg"),
        ("coco_stuff", "images/val2017/._000000000000.jpg"),
        ("coco_stuff", "images/val2017/readme.txt"),
        ("ade20k", "images/training/ADE_train_00000001.jpg"),
        ("cityscapes", "leftImg8bit/train/aachen/aachen_000000_000001_leftImg8bit.png"),
        ("cityscapes", "leftImg8bit/val/frankfurt/frankfurt_000000_000000_rightImg8bit.png"),
    ],
)
def test_only_the_evaluation_split_is_listed(name: str, other: str, tmp_path: Path) -> None:
    ids = export(name, tmp_path, scenes(name))
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).write_bytes(b"other")
    assert ids_of(list_exported(name, tmp_path)) == ids


@pytest.mark.parametrize("name", ["voc21", "ade20k", "cityscapes"])
@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_limit_takes_the_first_images(name: str, limit: int, tmp_path: Path) -> None:
    ids = export(name, tmp_path, scenes(name))
    assert ids_of(list_exported(name, tmp_path, limit)) == ids[:limit]


@pytest.mark.parametrize(
    ("name", "listings"), [("voc21", 0), ("context59", 0), ("coco_stuff", 1), ("ade20k", 1), ("cityscapes", 1)]
)
def test_no_more_is_listed_than_needed(
    name: str, listings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(name, tmp_path, scenes(name))
    listed: list[str] = []
    find = LocalFileSystem.find

    def counting(fs: LocalFileSystem, path: str, **options: object) -> list[str]:
        listed.append(path)
        return find(fs, path, **options)

    monkeypatch.setattr(LocalFileSystem, "find", counting)
    list_exported(name, tmp_path)
    assert len(listed) == listings


def test_a_split_list_in_any_order_with_blank_lines(tmp_path: Path) -> None:
    ids = export("voc21", tmp_path, scenes("voc21"))
    (tmp_path / "ImageSets/Segmentation/val.txt").write_bytes(b"2007_000002\r\n\r\n 2007_000000 \r\n2007_000001")
    assert ids_of(list_exported("voc21", tmp_path)) == ids


def test_a_listed_image_that_is_not_there_is_left_to_the_run(tmp_path: Path) -> None:
    ids = export("voc21", tmp_path, scenes("voc21"))
    (tmp_path / ids[1]).unlink()
    corpus = list_exported("voc21", tmp_path).corpus
    statuses = [record.status for shard in corpus.shards for record in read_shard(corpus, shard)]
    assert statuses == [Status.OK, Status.MISSING, Status.OK]


def remove(relative: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / relative)


def write(relative: str, content: bytes) -> Callable[[Path], object]:
    def apply(root: Path) -> None:
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).write_bytes(content)

    return apply


def without_masks_but(relative: str) -> Callable[[Path], object]:
    return lambda root: (remove("SegmentationClassContext")(root), write(relative, b"Matlab")(root))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("voc21", shutil.rmtree, "it does not exist$"),
        ("voc21", remove("ImageSets"), r"has no ImageSets/Segmentation/val\.txt: give the folder"),
        ("voc21", write("ImageSets/Segmentation/val.txt", b"\n \n"), r"val\.txt lists no images: write one"),
        ("voc21", write("ImageSets/Segmentation/val.txt", b"\xff\xfe\n"), r"val\.txt is no UTF-8 text: write one"),
        ("voc20", remove("SegmentationClass"), r"has no SegmentationClass/2007_000000\.png: give the folder"),
        ("context60", remove("ImageSets"), r"has no ImageSets/SegmentationContext/val\.txt: "),
        ("context59", remove("SegmentationClassContext"), r"has no SegmentationClassContext/2008_000000\.png: "),
        ("context60", without_masks_but("trainval/2008_000000.mat"), r"Matlab's masks \(\.mat\).*: convert them to"),
        ("context60", without_masks_but("2008_000000.mat"), r"Matlab's masks \(\.mat\).*: convert them to"),
        ("context60", without_masks_but("SegmentationClassContext/2008_000000.mat"), r"Matlab's masks \(\.mat\)"),
        ("context59", without_masks_but("VOC2010/trainval/2008_000000.mat"), r"Matlab's masks \(\.mat\)"),
        ("coco_stuff", remove("images"), r"has no images/val2017/\*\.jpg or val2017/\*\.jpg: "),
        ("coco_object", remove("stuffthingmaps_trainval2017"), r"stuffthingmaps_trainval2017/val2017/0{12}\.png or "),
        ("ade20k", remove("images/validation"), r"has no images/validation/\*\.jpg: "),
        ("ade20k", remove("annotations"), r"has no annotations/validation/ADE_val_0{8}\.png: "),
        ("cityscapes", remove("leftImg8bit"), r"has no leftImg8bit/val/\*_leftImg8bit\.png: "),
        ("cityscapes", remove("gtFine"), r"_labelIds\.png or gtFine/val/frankfurt/.*_labelTrainIds\.png: "),
    ],
)
def test_wrong_roots_are_refused(name: str, spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    export(name, root, scenes(name))
    list_exported(name, root)
    spoil(root)
    with pytest.raises(RequestError, match=message) as caught:
        list_exported(name, root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_makers_list_of_context_with_matlab_masks(tmp_path: Path) -> None:
    write("VOCdevkit/VOC2010/trainval/2008_000002.mat", b"Matlab")(tmp_path)
    with pytest.raises(RequestError, match=r"with mmsegmentation's pascal_context\.py"):
        list_exported("context60", tmp_path)


def test_a_folder_of_masks_that_is_missing_is_named_from_the_root(tmp_path: Path) -> None:
    export("voc21", tmp_path / "VOCdevkit/VOC2012", scenes("voc21"))
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2012/SegmentationClass")
    with pytest.raises(RequestError, match=r"has no VOC2012/SegmentationClass/2007_000000\.png: "):
        list_exported("voc21", tmp_path / "VOCdevkit")


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("voc21", "ade20k"):
        with pytest.raises(RequestError, match=f"^--root {tmp_path}/file"):
            list_exported(name, tmp_path / "file")


STORED = {"voc21": "VOCdevkit/VOC2012", "cityscapes": "city", "coco_stuff_train_ids": "coco"}
BAD_NAME = "s3://no_bucket's_name/x"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a bucket that holds the data sets of `STORED`; this process's environment leads there."""
    folder = tmp_path_factory.mktemp("s3")
    s3fs.S3FileSystem.clear_instance_cache()
    with seaweed(folder / "server") as environment, pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        for name, own_folder in STORED.items():
            export(name, folder / own_folder, scenes(name))
            s3_client(environment).put(f"{folder / own_folder}", f"{BUCKET}/{own_folder}", recursive=True)
        yield f"s3://{BUCKET}"
    s3fs.S3FileSystem.clear_instance_cache()


def in_object_storage(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(pytest.mark.end_to_end(pytest.mark.xdist_group("labelled")(test)))


@in_object_storage
@pytest.mark.parametrize("name", STORED)
def test_object_storage(name: str, bucket: str, tmp_path: Path) -> None:
    ids = export(name, tmp_path, scenes(name))
    labelled = pickle.loads(pickle.dumps(list_exported(name, f"{bucket}/{STORED[name]}/").with_retries()))
    for location in (labelled.corpus.root, labelled.masks):
        assert "config_kwargs" in location.fs.storage_options, "the client does not retry"
    assert ids_of(labelled) == ids
    for shard, (_, truth) in zip(labelled.corpus.shards, scenes(name), strict=True):
        (record,) = read_shard(labelled.corpus, shard)
        assert record.data == (tmp_path / shard.name).read_bytes()
        np.testing.assert_array_equal(read_mask(labelled, record.image_id), MAKERS[name].expected(truth))


@in_object_storage
def test_a_bucket_above_the_data_set_and_a_missing_mask(bucket: str) -> None:
    labelled = list_exported("voc21", bucket, limit=1)
    assert ids_of(labelled) == ["VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg"]
    with pytest.raises(DecodeError, match=r"^it does not exist"):
        read_mask(labelled, "VOCdevkit/VOC2012/JPEGImages/2007_000009.jpg")


@in_object_storage
@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("voc21", "{}/none", "s3://test/none: it does not exist"),
        ("ade20k", "{}/none", "s3://test/none: it does not exist"),
        ("ade20k", "s3://no-such-bucket/x", "s3://no-such-bucket/x: it does not exist"),
        ("voc20", BAD_NAME, f"{BAD_NAME}: "),
        ("ade20k", BAD_NAME, f"{BAD_NAME}: "),
        ("context60", "{}/city", r"s3://test/city has no ImageSets/SegmentationContext/val\.txt"),
    ],
)
def test_wrong_roots_in_object_storage(name: str, root: str, message: str, bucket: str) -> None:
    with pytest.raises(RequestError, match=f"^--root {message}"):
        list_exported(name, root.format(bucket))


@in_object_storage
@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ("{}/city/leftImg8bit", "{}/city/gtFine", "masks s3://test/city/gtFine: there are none for the first images"),
        ("{}/city/leftImg8bit", "{}/city/none", "masks s3://test/city/none: it does not exist"),
        ("{}/city/none", "{}/city/gtFine", "images s3://test/city/none: it does not exist"),
        ("{}/city/leftImg8bit", BAD_NAME, f"masks {BAD_NAME}: "),
        (BAD_NAME, "{}/city/gtFine", f"images {BAD_NAME}: "),
    ],
)
def test_wrong_index_masks_in_object_storage(images: str, masks: str, message: str, bucket: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        list_index_masks(at(images.format(bucket)), at(masks.format(bucket)), 34, False)
