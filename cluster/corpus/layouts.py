"""How the makers of labelled data sets lay them out, and what the values in their masks stand for.

====================  ================================================================================================
data set              what is read below the root; folders in brackets may be there or not
====================  ================================================================================================
voc21, voc20          ``[VOCdevkit/][VOC2012/]``: ``ImageSets/Segmentation/val.txt``, ``JPEGImages/ID.jpg``,
                      ``SegmentationClass/ID.png``
context60, context59  ``[VOCdevkit/][VOC2010/]``: ``ImageSets/SegmentationContext/val.txt``, ``JPEGImages/ID.jpg``,
                      ``SegmentationClassContext/ID.png`` with values from 0 to 59
coco_stuff,           ``[images/]val2017/ID.jpg``; ``ID.png`` with COCO's ids less one, or ``ID_labelTrainIds.png``
coco_object           with values from 0 to 170, in ``stuffthingmaps_trainval2017/val2017/``,
                      ``stuffthingmaps/val2017/`` or ``annotations/val2017/``
ade20k                ``[ADEChallengeData2016/]``: ``images/validation/ID.jpg``, ``annotations/validation/ID.png``
cityscapes            ``leftImg8bit/val/CITY/ID_leftImg8bit.png``; in ``gtFine/val/CITY/``:
                      ``ID_gtFine_labelIds.png`` or ``ID_gtFine_labelTrainIds.png``
====================  ================================================================================================

Without a background of its own (voc20, context59, ade20k), a data set ignores the value 0, and 1 is the first class.
COCO-Object reads COCO-Stuff's masks; all but the 80 things is background, unlabelled pixels too (GroupViT's protocol).
"""

from dataclasses import dataclass
from typing import NamedTuple

from cluster.corpus.ground_truth import IGNORED, TruthFormat, truth_format

COCO_VALUES = tuple(sorted(set(range(182)) - {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}))
"""COCO's ids less one, in the order of classes: 80 things, then 91 kinds of stuff."""
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Ids of the 19 classes that count, in their order."""


class Masks(NamedTuple):
    """A folder that may hold the masks, what their names end in there, and what their values stand for."""

    folder: str
    ending: str
    truth: TruthFormat


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        bases: the data set's folder relative to the root is one of these; empty is the root itself.
        images: the images' folder is one of these.
        masks: the masks are in one of these places.
        ending: what images' names end in.
        split: the file that lists the images to evaluate; without one, all in the folder are.
        matlab: folders that may hold masks in Matlab's format, which cannot be read.
    """

    bases: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[Masks, ...]
    ending: str = ".jpg"
    split: str | None = None
    matlab: tuple[str, ...] = ()


def voc(truth: TruthFormat) -> Layout:
    return Layout(
        bases=("", "VOC2012", "VOCdevkit/VOC2012"),
        images=("JPEGImages",),
        masks=(Masks("SegmentationClass", ".png", truth),),
        split="ImageSets/Segmentation/val.txt",
    )


def context(truth: TruthFormat) -> Layout:
    return Layout(
        bases=("", "VOC2010", "VOCdevkit/VOC2010"),
        images=("JPEGImages",),
        masks=(Masks("SegmentationClassContext", ".png", truth),),
        split="ImageSets/SegmentationContext/val.txt",
        matlab=("", "trainval", "SegmentationClassContext"),
    )


def coco(ids: TruthFormat, train_ids: TruthFormat) -> Layout:
    folders = ("stuffthingmaps_trainval2017/val2017", "stuffthingmaps/val2017", "annotations/val2017")
    kinds = ((".png", ids), ("_labelTrainIds.png", train_ids))
    return Layout(
        bases=("",),
        images=("images/val2017", "val2017"),
        masks=tuple(Masks(folder, *kind) for folder in folders for kind in kinds),
    )


LAYOUTS = {
    "voc21": voc(truth_format(range(21), ignored={255})),
    "voc20": voc(truth_format(range(1, 21), ignored={0, 255})),
    "context60": context(truth_format(range(60), ignored={255})),
    "context59": context(truth_format(range(1, 60), ignored={0, 255})),
    "coco_object": coco(truth_format(COCO_VALUES[:80], first=1, other=0), truth_format(range(80), first=1, other=0)),
    "coco_stuff": coco(truth_format(COCO_VALUES, ignored={255}), truth_format(range(171), ignored={255})),
    "ade20k": Layout(
        bases=("", "ADEChallengeData2016"),
        images=("images/validation",),
        masks=(Masks("annotations/validation", ".png", truth_format(range(1, 151), ignored={0, 255})),),
    ),
    "cityscapes": Layout(
        bases=("",),
        images=("leftImg8bit/val",),
        masks=(
            Masks("gtFine/val", "_gtFine_labelIds.png", truth_format(CITYSCAPES_IDS, other=IGNORED)),
            Masks("gtFine/val", "_gtFine_labelTrainIds.png", truth_format(range(19), ignored={255})),
        ),
        ending="_leftImg8bit.png",
    ),
}
