"""Labelled data sets, local or in object storage: which images to evaluate on, and what is true of each.

`cluster.corpus.layouts` says how the known ones are laid out; any other is a folder of images and one of masks.
"""

import itertools
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from cliper.decode import IMAGE_ENDINGS
from cliper.files import STORAGE_ERRORS, storage_problem
from cliper.ground_truth import OUTSIDE, VALUES, lookup_table
from cluster.corpus.layouts import Layout, Split, find_layout
from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from cluster.corpus.readers import Shard, is_hidden
from cluster.corpus.sources import Corpus
from cluster.storage import Location
from schemas.errors import DecodeError, RequestError
from schemas.rows import Status

PROBED = 3
"""Masks have to be there for one of so many first images; that tells in which of several places masks are."""
MATLAB_ADVICE = (
    "convert them to SegmentationClassContext/ID.png with values from 0 (background) to 59 and the list "
    "ImageSets/SegmentationContext/val.txt, for example with mmsegmentation's pascal_context.py"
)


@dataclass(frozen=True)
class LabelledCorpus:
    """Images and their masks.

    Attributes:
        corpus: the images, named relative to its root.
        images: what image ids begin with and masks do not (``JPEGImages/``).
        image_tail: what image ids end in before the dot and masks do not (``_leftImg8bit``).
        masks: the masks' folder.
        ending: what masks' names end in (``_gtFine_labelIds.png``).
        lookup: what their values stand for, see `cliper.ground_truth.lookup_table`.
    """

    corpus: Corpus
    images: str
    image_tail: str
    masks: Location
    ending: str
    lookup: np.ndarray

    def with_retries(self) -> "LabelledCorpus":
        """The same data set, with clients that go on trying when the storage does not answer."""
        corpus = replace(self.corpus, root=self.corpus.root.with_retries())
        return replace(self, corpus=corpus, masks=self.masks.with_retries())

    def mask_of(self, image_id: str) -> Location:
        """The place of an image's mask, whether anything is there or not."""
        stem = posixpath.splitext(image_id.removeprefix(self.images))[0].removesuffix(self.image_tail)
        return self.masks / (stem + self.ending)

    def has_masks(self) -> bool:
        masks = [self.mask_of(shard.name) for shard in self.corpus.shards[:PROBED]]
        return any(mask.fs.exists(mask.path) for mask in masks)

    def fetch_mask(self, image_id: str) -> bytes:
        """An image's mask, as it was written.

        Raises:
            DecodeError: the mask is not there.
            OSError: the storage failed.
        """
        mask = self.mask_of(image_id)
        try:
            return bytes(mask.fs.cat_file(mask.path))
        except (FileNotFoundError, PermissionError) as error:
            raise DecodeError(Status.NO_TRUTH, storage_problem(error)) from error


def list_labelled(
    name: str, root: Location, split: Split = "val", limit: int | None = None, limits: Limits = DEFAULT_LIMITS
) -> LabelledCorpus:
    """A split of a data set that `cluster.corpus.layouts` knows.

    A list of the split is believed: nothing is listed then, and images on it that are not there fail in the run.

    Args:
        name: one of `BENCHMARKS`.
        root: the data set's folder, or one above it.
        split: published figures are about ``val``.
        limit: use only the first so many images, in the order of names.
        limits: on single images.

    Raises:
        RequestError: images, their list or masks are not there.
    """
    layout = find_layout(name, split)
    with refusing_storage_errors(str(root)):
        base, folder, names = find_images(root, layout)
        corpus = corpus_of(root, [posixpath.join(folder, image) for image in names[:limit]], limits)
        tail = layout.ending.rpartition(".")[0]
        places = []
        for mask_folder, masks in itertools.product(layout.mask_folders, layout.masks):
            place = below(root, base, mask_folder)
            labelled = LabelledCorpus(corpus, f"{folder}/", tail, place, masks.ending, masks.lookup)
            if labelled.has_masks():
                return labelled
            places.append(posixpath.relpath(labelled.mask_of(corpus.shards[0].name).path, root.path))
        raise lacking(root, layout, places)


def list_index_masks(
    images: Location,
    masks: Location,
    classes: int,
    background: bool,
    ignore: frozenset[int] = frozenset({255}),
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> LabelledCorpus:
    """Any folder of images and index masks: PNG files with the images' names, in the same subfolders.

    Both may be one folder, or the masks' folder may lie in the images': PNG files there are no images then.

    Args:
        images, masks: the folders.
        classes: how many classes there are.
        background: the value 0 is background, or no class if it is ignored, and 1 the first class; else 0 is the first
            class.
        ignore: values of pixels that do not count, even where they are a class's.
        limit: use only the first so many images, in the order of names.
        limits: on single images.

    Raises:
        RequestError: images or masks are not there, or values do not fit into 16 bits.
    """
    if classes >= OUTSIDE:
        raise RequestError(f"masks cannot tell {classes:,} classes apart: at most {OUTSIDE - 1:,}")
    if not ignore <= set(range(VALUES)):
        raise RequestError(f"values of masks are 0 to {VALUES - 1}: {sorted(ignore)} cannot all be ignored")
    with refusing_storage_errors(f"images {images.url}"):
        corpus = corpus_of(images, image_names(images, masks)[:limit], limits)
    with refusing_storage_errors(f"masks {masks.url}"):
        must_exist(masks)
        lookup = lookup_table(range(background, classes + background), [0] if background else [], ignore)
        labelled = LabelledCorpus(corpus, "", "", masks, ".png", lookup)
        if not labelled.has_masks():
            image = corpus.shards[0].name
            raise RequestError(
                f"masks {masks.url}: there are none for the first images: {image} needs {labelled.mask_of(image).url}"
            )
    return labelled


def image_names(images: Location, masks: Location) -> list[str]:
    """The images in a folder, relative to it, without the PNG files in the masks' folder if that lies in it."""
    names = [name for name in file_names(images) if name.lower().endswith(IMAGE_ENDINGS)]
    if f"{masks.path}/".startswith(f"{images.path}/"):
        inside = f"{masks.path}/".removeprefix(f"{images.path}/")
        names = [name for name in names if not (name.startswith(inside) and name.endswith(".png"))]
    if not names:
        must_exist(images)
        raise RequestError(f"images {images.url}: there are none (names end in {', '.join(IMAGE_ENDINGS)})")
    return names


def find_images(root: Location, layout: Layout) -> tuple[str, str, list[str]]:
    """The data set's folder and the images' relative to the root, and the images relative to theirs, sorted."""
    for base in layout.bases:
        for images in layout.images:
            if layout.split:
                names = names_in_split(below(root, base, layout.split), layout.ending)
            else:
                names = [name for name in file_names(below(root, base, images)) if name.endswith(layout.ending)]
            if names:
                return base, posixpath.join(base, images), names
    folders = [posixpath.join(folder, f"*{layout.ending}") for folder in layout.images]
    raise lacking(root, layout, [layout.split] if layout.split else folders)


def names_in_split(file: Location, ending: str) -> list[str]:
    """The images that a file lists, one on each line without ending; none if there is no file."""
    try:
        lines = file.fs.cat_file(file.path).decode().splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise RequestError(f"{file.url} is no UTF-8 text: write one image's name on each line") from None
    names = sorted({line.strip() + ending for line in lines if line.strip()})
    if not names:
        raise RequestError(f"{file.url} lists no images: write one image's name on each line")
    return names


def file_names(folder: Location, depth: int | None = None) -> list[str]:
    """Files in a folder and below, relative to it and sorted; hidden ones are passed over, no folder has none."""
    names = [posixpath.relpath(path, folder.path) for path in folder.fs.find(folder.path, maxdepth=depth)]
    return sorted(name for name in names if not is_hidden(name))


def below(root: Location, *parts: str) -> Location:
    return replace(root, path=posixpath.join(root.path, *filter(None, parts)))


def corpus_of(root: Location, names: Sequence[str], limits: Limits) -> Corpus:
    return Corpus(root, "folder", tuple(Shard(name, below(root, name).path) for name in names), limits)


def must_exist(location: Location) -> None:
    if not location.fs.exists(location.path):
        raise FileNotFoundError(location.path)


def lacking(root: Location, layout: Layout, files: Iterable[str]) -> RequestError:
    """The error for a root in which files of a layout were looked for and not found."""
    if not root.fs.exists(root.path):
        return RequestError(f"{root}: it does not exist")
    folders = [below(root, base, folder) for base in layout.bases for folder in layout.matlab]
    if any(name.endswith(".mat") for folder in folders for name in file_names(folder, depth=1)):
        return RequestError(f"{root} has Matlab's masks (.mat), which cannot be read: {MATLAB_ADVICE}")
    return RequestError(f"{root} has no {' or '.join(files)}: give the folder in which the data set was unpacked")


@contextmanager
def refusing_storage_errors(what: str) -> Iterator[None]:
    """Raise RequestError for what the storage raises."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise RequestError(f"{what}: {storage_problem(error)}") from error
