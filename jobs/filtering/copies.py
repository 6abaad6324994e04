"""Copy the images that a filter keeps. The same request resumes, and another one is refused."""

import hashlib
from dataclasses import asdict, replace

from rich.console import Console

from cluster.copying import SHARD_PATTERN, copy_images, plan_copies
from cluster.corpus.inputs import open_input
from cluster.corpus.limits import Limits
from cluster.corpus.sources import Corpus, list_corpus
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.output.rows import Labels
from cluster.storage import open_location
from jobs.common.targets import check_outside
from jobs.filtering.selection import Selection
from schemas.errors import RequestError
from schemas.manifest import Manifest

NO_LIMITS = Limits(max_file_mb=10**9)
"""An image that was labelled is copied, whatever its size."""


def check_copy(labels: Labels, address: str, images_per_shard: int) -> None:
    """Raises RequestError: the request makes no sense."""
    check_outside(open_location(address, "--copy-to"), labels)
    if images_per_shard < 1:
        raise RequestError(f"--pictures-per-shard must be at least 1, not {images_per_shard}")
    if not {"address", "format"} <= labels.manifest["input"].keys():
        raise RequestError("--copy-to: the manifest of --labels does not say where the images are")


def copy_kept(
    selection: Selection, labels: Labels, address: str, per_shard: int, cluster: str | None, overwrite: bool,
    console: Console,
) -> None:  # fmt: skip
    """Copy the images of a selection until all are there.

    Raises:
        RequestError: the target belongs to another request or cannot be used.
        JobFailedError, ray.exceptions.RayError: images cannot be read or written. Finished shards stay.
    """
    output = Output(open_location(address, "--copy-to"), "", SHARD_PATTERN)
    manifest = copy_manifest(selection, labels, per_shard)
    output.check(manifest, overwrite)
    if output.is_finished() and not overwrite:
        console.print("Already copied: nothing to do (--overwrite starts over).")
        return
    corpus = labelled_corpus(labels, output)
    images = zip(selection.images["image_id"].to_pylist(), selection.images["shard"].to_pylist(), strict=True)
    with exclusive_run(output, manifest, console, overwrite) as output:
        tasks = plan_copies(corpus, images, per_shard)
        copy_images(corpus, tasks, output, cluster, console)
        output.finish(output.data_files())
    shards = sum(len(task.shards) for task in tasks)
    console.print(f"Copied {selection.kept:,} images into {shards:,} shards: {output.location.url}")


def copy_manifest(selection: Selection, labels: Labels, per_shard: int) -> Manifest:
    digest = hashlib.sha256()
    for image_id in selection.images["image_id"].to_pylist():
        digest.update(f"{image_id}\0".encode())
    return Manifest({
        "labels": labels.location.url,
        "labels_fingerprint": labels.manifest["fingerprint"],
        "conditions": asdict(selection.conditions),
        "images": selection.kept,
        "ids_sha256": digest.hexdigest(),
        "images_per_shard": per_shard,
    })  # fmt: skip


def labelled_corpus(labels: Labels, output: Output) -> Corpus:
    """The corpus that was labelled.

    Raises:
        RequestError: it no longer exists.
    """
    source = labels.manifest["input"]
    try:
        found = open_input(source["address"], labels.location.flag)
        corpus = list_corpus(found, source["format"], output.location, limits=NO_LIMITS)
    except RequestError as error:
        flag = output.location.flag
        raise RequestError(f"{flag}: the images that were labelled cannot be found ({error})") from error
    return replace(corpus, root=corpus.root.with_retries())
