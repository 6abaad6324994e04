"""How the makers of labelled data sets lay them out: the ``layout`` of an entry of ``cliper/published.json``.

The paths are those of the validation split. Those of the training split have ``train`` or ``training`` in them.

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

Without a background of its own (voc20, context59, ade20k), a data set ignores the value 0; 1 is the first class.
COCO-Object reads COCO-Stuff's masks; all but the 80 things is background, unlabelled pixels too (GroupViT's protocol).
"""

from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np

from cliper.ground_truth import IGNORED, OUTSIDE, lookup_table
from cliper.published import read_published

BENCHMARKS = tuple(read_published())
"""The names of the data sets."""
Split = Literal["val", "train"]
OTHERS = {"background": 0, "ignored": IGNORED, "error": OUTSIDE}


class Masks(NamedTuple):
    """What masks' names end in, and what their values stand for.

    Attributes:
        ending: in place of the images'.
        classes: the classes' values in their order, as ranges from the first to the last.
        background, ignored: values of the background, and of pixels that do not count.
        other: what all other values stand for.
    """

    ending: str
    classes: list[tuple[int, int]]
    background: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    other: Literal["background", "ignored", "error"] = "error"

    @property
    def lookup(self) -> np.ndarray:
        """See `cliper.ground_truth.lookup_table`."""
        values = chain.from_iterable(range(first, last + 1) for first, last in self.classes)
        return lookup_table(values, self.background, self.ignored, OTHERS[self.other])


@dataclass(frozen=True)
class Layout:
    """How a data set is laid out.

    Attributes:
        bases: the data set's folder relative to the root is one of these; empty is the root itself.
        images: the images' folder is one of these.
        ending: what images' names end in.
        mask_folders: the masks are in one of these.
        masks: and have one of these forms.
        split: the file that lists the images to evaluate; without one, all in the folder are.
        matlab: folders that may hold masks in Matlab's format, which cannot be read.
    """

    bases: tuple[str, ...]
    images: tuple[str, ...]
    ending: str
    mask_folders: tuple[str, ...]
    masks: tuple[Masks, ...]
    split: str | None = None
    matlab: tuple[str, ...] = ()


def find_layout(name: str, split: Split = "val") -> Layout:
    """The layout of a split of one of `BENCHMARKS`."""
    entry = dict(read_published()[name]["layout"])
    maker_split = entry.pop("splits", {}).get(split, split)
    entry["masks"] = tuple(Masks(**masks) for masks in entry["masks"])
    for paths in ("images", "mask_folders"):
        entry[paths] = tuple(path.replace("{split}", maker_split) for path in entry[paths])
    if "split" in entry:
        entry["split"] = entry["split"].replace("{split}", maker_split)
    return Layout(**entry)
