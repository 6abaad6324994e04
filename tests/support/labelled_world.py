"""Small labelled data sets in their makers' layouts, names and values, to be read back."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cliper.ground_truth import decode_truth
from cluster.corpus.labelled import LabelledCorpus

BACKGROUND, UNLABELLED = 65534, 65535
"""In a truth to export: the pixel shows none of the classes, or nobody says what it shows."""
READ_AS_IGNORED = 65535

COCO_IDS = [number for number in range(1, 183) if number not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}]
COCO_VALUES = tuple(number - 1 for number in COCO_IDS)
CITYSCAPES_IDS = (*(7, 8), *(11, 12, 13), 17, *range(19, 29), *(31, 32, 33))
CITIES = ("frankfurt", "lindau", "munster")


@dataclass(frozen=True)
class Maker:
    """How a maker writes a data set down.

    Attributes:
        image, mask: paths; ``index`` counts images, ``city`` grows with it.
        values: the classes' values in masks.
        background, unlabelled: the values of such pixels.
        background_reads, unlabelled_reads: what they have to be read as.
        split: path of the list of images.
    """

    image: str
    mask: str
    values: tuple[int, ...]
    background: int
    unlabelled: int
    background_reads: int = READ_AS_IGNORED
    unlabelled_reads: int = READ_AS_IGNORED
    split: str | None = None

    def expected(self, truth: np.ndarray) -> np.ndarray:
        """What an exported truth has to be read back as, uint16 [height, width]."""
        marked = {BACKGROUND: self.background_reads, UNLABELLED: self.unlabelled_reads}
        return np.array([[marked.get(label, label + 1) for label in row] for row in truth.tolist()], np.uint16)


VOC = ("JPEGImages/2007_{index:06}.jpg", "SegmentationClass/2007_{index:06}.png", tuple(range(1, 21)), 0, 255)
VOC_SPLIT = "ImageSets/Segmentation/val.txt"
CONTEXT = (
    "JPEGImages/2008_{index:06}.jpg",
    "SegmentationClassContext/2008_{index:06}.png",
    tuple(range(1, 60)),
    0,
    255,
)
CONTEXT_SPLIT = "ImageSets/SegmentationContext/val.txt"
COCO_IMAGE, COCO_MASK = "images/val2017/{index:012}.jpg", "stuffthingmaps_trainval2017/val2017/{index:012}.png"
COCO_TRAIN_IDS_MASK = "annotations/val2017/{index:012}_labelTrainIds.png"
CITY_IMAGE = "leftImg8bit/val/{city}/{city}_000000_{index:06}_leftImg8bit.png"
CITY_MASK = "gtFine/val/{city}/{city}_000000_{index:06}_gtFine_label"
MAKERS = {
    "voc21": Maker(*VOC, background_reads=0, split=VOC_SPLIT),
    "voc20": Maker(*VOC, split=VOC_SPLIT),
    "context60": Maker(*CONTEXT, background_reads=0, split=CONTEXT_SPLIT),
    "context59": Maker(*CONTEXT, split=CONTEXT_SPLIT),
    "coco_object": Maker(COCO_IMAGE, COCO_MASK, COCO_VALUES[:80], 91, 255, 0, 0),
    "coco_object_train_ids": Maker(COCO_IMAGE, COCO_TRAIN_IDS_MASK, tuple(range(80)), 80, 255, 0, 0),
    "coco_stuff": Maker(COCO_IMAGE, COCO_MASK, COCO_VALUES, 255, 255),
    "coco_stuff_train_ids": Maker(COCO_IMAGE, COCO_TRAIN_IDS_MASK, tuple(range(171)), 255, 255),
    "ade20k": Maker(
        "images/validation/ADE_val_{index:08}.jpg", "annotations/validation/ADE_val_{index:08}.png",
        tuple(range(1, 151)), 0, 0,
    ),
    "cityscapes": Maker(CITY_IMAGE, f"{CITY_MASK}Ids.png", CITYSCAPES_IDS, 4, 0),
    "cityscapes_train_ids": Maker(CITY_IMAGE, f"{CITY_MASK}TrainIds.png", tuple(range(19)), 255, 255),
}  # fmt: skip
"""By the benchmark's name; with ``_train_ids``, the benchmark's masks in their other usual form."""


def export(name: str, root: Path, images: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """Write a data set.

    Args:
        name: one of `MAKERS`.
        root: the data set's own folder.
        images: uint8 [height, width, 3] with integers [height, width]: class indices from 0, `BACKGROUND` or
            `UNLABELLED`.

    Returns:
        The image ids, in the images' order, which is the order of names.
    """
    maker = MAKERS[name]
    value_of = np.zeros(65536, np.uint8)
    value_of[: len(maker.values)] = maker.values
    value_of[[BACKGROUND, UNLABELLED]] = maker.background, maker.unlabelled
    image_ids = []
    for index, (image, truth) in enumerate(images):
        names = {"index": index, "city": CITIES[min(index, len(CITIES) - 1)]}
        mask = Image.fromarray(value_of[truth])
        if name.startswith("voc"):
            mask.putpalette([(37 * entry) % 256 for entry in range(768)])
        image_ids.append(maker.image.format(**names))
        save(Image.fromarray(image), root / image_ids[-1])
        save(mask, root / maker.mask.format(**names))
    if maker.split:
        (root / maker.split).parent.mkdir(parents=True)
        (root / maker.split).write_text("".join(f"{Path(image_id).stem}\n" for image_id in image_ids))
    return image_ids


def read_mask(labelled: LabelledCorpus, image_id: str) -> np.ndarray:
    """The label of every pixel, uint16 [height, width], as an evaluation reads it."""
    return decode_truth(labelled.fetch_mask(image_id), labelled.lookup, labelled.corpus.limits.max_pixels)


def png_bytes(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def save(image: Image.Image, path: Path) -> None:
    """As JPEG or PNG, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)
