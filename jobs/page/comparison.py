"""Two runs over the same images: which images differ most, from areas of masks alone, so that no mask is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.output.rows import Labels
from jobs.page.images import Row
from schemas.runs import labels_from_annotations

COLUMNS = (
    "image_id", "width", "height", "annotations.list.element.category_id", "annotations.list.element.area",
)  # fmt: skip


@dataclass(frozen=True)
class Areas:
    """How much of each image every class covers.

    Attributes:
        image_ids: string [images], of rows with status ok.
        images, classes: int64 [masks], the mask's image as a position in ``image_ids`` and its class, from 0.
        shares: float64 [masks], the mask's share of the image.
    """

    image_ids: pa.ChunkedArray
    images: np.ndarray
    classes: np.ndarray
    shares: np.ndarray


def read_areas(labels: Labels, classes: Sequence[int]) -> Areas:
    """The areas of all masks. Memory grows with the images, by about a hundred bytes and an id each.

    Args:
        labels: the run.
        classes: for every class of the run the number to give it.

    Raises:
        RequestError: a row has a category that the manifest does not know.
        OSError: the storage failed.
    """
    numbers, start = np.asarray(classes), 0
    image_ids, images, own, shares = [], [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for batch in labels.batches(COLUMNS):
        annotations = batch["annotations"]
        parents = pc.list_parent_indices(annotations).to_numpy()
        masks = pc.list_flatten(annotations)
        pixels = batch["width"].to_numpy().astype(np.float64) * batch["height"].to_numpy()
        image_ids.append(batch["image_id"])
        images.append(start + parents)
        own.append(pc.struct_field(masks, "category_id").to_numpy().astype(np.int64) - 1)
        shares.append(pc.struct_field(masks, "area").to_numpy() / pixels[parents])
        start += len(batch)
    return Areas(
        pa.chunked_array(image_ids, pa.string()), *map(np.concatenate, (images, [numbers[np.concatenate(own)]], shares))
    )


def least_differences(one: Areas, other: Areas) -> tuple[list[str], np.ndarray]:
    """The images that both have, and for each the share of its pixels whose class must differ at least.

    That is half of the sum of the differences between the areas of its classes, background included. Classes that
    changed places are not seen.

    Returns:
        Ids, and float64 [images].
    """
    positions = pc.index_in(one.image_ids, value_set=other.image_ids)
    in_one = np.flatnonzero(positions.is_valid().to_numpy())
    in_other = positions.drop_null().to_numpy().astype(np.int64)
    ids = one.image_ids.take(pa.array(in_one)).to_pylist()
    gains = signed_areas(one, in_one, -1.0), signed_areas(other, in_other, 1.0)
    images, classes, shares = (np.concatenate(parts) for parts in zip(*gains, strict=True))
    pairs, where = np.unique(np.stack([images, classes]), axis=1, return_inverse=True)
    changes = np.bincount(where.ravel(), shares, minlength=pairs.shape[1])
    grown = np.bincount(pairs[0], np.abs(changes), minlength=len(ids))
    background = np.abs(np.bincount(pairs[0], changes, minlength=len(ids)))
    return ids, (grown + background) / 2


def signed_areas(areas: Areas, chosen: np.ndarray, sign: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (as positions in ``chosen``), classes and signed shares of the masks of the chosen images."""
    places = np.full(len(areas.image_ids), -1)
    places[chosen] = np.arange(len(chosen))
    kept = places[areas.images] >= 0
    return places[areas.images[kept]], areas.classes[kept], sign * areas.shares[kept]


def choose_images(one: Areas, other: Areas, count: int, seed: int) -> tuple[list[str], int]:
    """Ids of images to show: half of them those that differ most, then images drawn at random.

    Returns:
        At most ``count`` ids without repetitions, and the number of images that both have.
    """
    ids, differences = least_differences(one, other)
    worst = np.argsort(-differences, kind="stable")[: (count + 1) // 2]
    drawn = np.random.default_rng(seed).permutation(len(ids))
    chosen = dict.fromkeys(ids[place] for place in (*worst.tolist(), *drawn.tolist()))
    return list(chosen)[:count], len(chosen)


def differing_share(rows: Sequence[Row], classes: Sequence[Sequence[int]]) -> float:
    """The share of an image's pixels to which two runs give different classes, 0 to 1.

    Args:
        rows: the image's row in both runs.
        classes: for both runs and every class of the run the number to give it.

    Raises:
        RequestError: a mask is damaged.
    """
    maps = []
    for row, numbers in zip(rows, classes, strict=True):
        labels = labels_from_annotations(row["annotations"], row["height"], row["width"])
        maps.append(np.append(-1, numbers)[labels])
    return float((maps[0] != maps[1]).mean())
