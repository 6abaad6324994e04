"""Copy the images that a filter keeps. The same request resumes, and another one is refused."""

from dataclasses import asdict, dataclass, replace

from rich.console import Console

from cluster.copying import (
    IMAGES,
    Copy,
    CopyForm,
    copy_images,
    copy_output,
    plan_copies,
    rows_files_by_shard,
)
from cluster.corpus.columns import Columns
from cluster.corpus.inputs import open_input
from cluster.corpus.limits import Limits
from cluster.corpus.sources import Corpus, list_corpus
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.output.rows import Labels
from cluster.samples import LabelForm
from cluster.storage import open_location
from jobs.common.targets import check_outside
from jobs.filtering.selection import Selection
from schemas.errors import RequestError
from schemas.image_ids import digest_of
from schemas.manifest import Manifest

NO_LIMITS = Limits(max_file_mb=10**9)
"""An image that was labelled is copied, whatever its size."""


@dataclass(frozen=True)
class CopyRequest:
    """What is to be copied where: the flags of ``jobs/filter.py`` of the same meaning."""

    address: str
    form: CopyForm
    labels: LabelForm
    images_per_shard: int
    cluster: str | None
    overwrite: bool


def check_copy(labels: Labels, request: CopyRequest) -> None:
    """Raises RequestError: the request makes no sense."""
    check_outside(open_location(request.address, "--copy-to"), labels)
    if request.images_per_shard < 1:
        raise RequestError(f"--pictures-per-shard must be at least 1, not {request.images_per_shard}")
    if not {"address", "format"} <= labels.manifest["input"].keys():
        raise RequestError("--copy-to: the manifest of --labels does not say where the images are")


def copy_kept(selection: Selection, labels: Labels, request: CopyRequest, console: Console) -> None:
    """Copy the images of a selection until all are there.

    Raises:
        RequestError: the target belongs to another request or cannot be used.
        JobFailedError, ray.exceptions.RayError: images cannot be read or written. Finished shards stay.
    """
    output = copy_output(open_location(request.address, "--copy-to"), request.form)
    manifest = copy_manifest(selection, labels, request)
    output.check(manifest, request.overwrite)
    if output.is_finished() and not request.overwrite:
        console.print("Already copied: nothing to do (--overwrite starts over).")
        return
    corpus = labelled_corpus(labels, output)
    images = zip(selection.images["image_id"].to_pylist(), selection.images["shard"].to_pylist(), strict=True)
    with exclusive_run(output, manifest, console, request.overwrite) as output:
        rows = Output(labels.location).with_retries()
        rows_files = rows_files_by_shard(rows) if request.labels != "none" else {}
        tasks = plan_copies(corpus, images, request.images_per_shard, rows_files)
        copy = Copy(output, request.form, request.labels, rows, labels.class_names)
        copy_images(corpus, tasks, copy, request.cluster, console)
        output.finish(output.data_files())
    shards = sum(len(task.shards) for task in tasks)
    where = f"{shards:,} shards" if request.form == "tar" else f"the folder {IMAGES}"
    console.print(f"Copied {selection.kept:,} images into {where}: {output.location.url}", soft_wrap=True)


def copy_manifest(selection: Selection, labels: Labels, request: CopyRequest) -> Manifest:
    return Manifest({
        "labels": labels.location.url,
        "labels_fingerprint": labels.manifest["fingerprint"],
        "conditions": asdict(selection.conditions),
        "images": selection.kept,
        "ids_sha256": digest_of(selection.images["image_id"].to_pylist()),
        "images_per_shard": request.images_per_shard,
        "form": request.form,
        "labels_beside": request.labels,
    })  # fmt: skip


def labelled_corpus(labels: Labels, output: Output) -> Corpus:
    """The corpus that was labelled.

    Raises:
        RequestError: it no longer exists.
    """
    source = labels.manifest["input"]
    try:
        found = open_input(source["address"], labels.location.flag)
        columns = Columns(labels.image_column, everything=True)
        corpus = list_corpus(found, source["format"], output.location, limits=NO_LIMITS, columns=columns)
    except RequestError as error:
        flag = output.location.flag
        raise RequestError(f"{flag}: the images that were labelled cannot be found ({error})") from error
    return replace(corpus, root=corpus.root.with_retries())
