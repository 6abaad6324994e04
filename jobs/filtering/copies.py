"""Copying the pictures that a filter keeps; the same request continues where it stopped, another one is refused."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ray.exceptions import RayError
from rich.console import Console

from cluster.copying import PicturesChangedError, copy_pictures, finished_shards, plan_copies
from cluster.corpus.limits import Limits
from cluster.corpus.sources import Corpus, list_corpus
from cluster.output.folder import Output
from cluster.output.lease import Lease
from cluster.output.rows import Labels
from cluster.storage import STORAGE_ERRORS, open_location
from jobs.filtering.selection import Selection
from schemas.errors import JobFailedError, RequestError

NO_LIMITS = Limits(max_file_mb=10**9)
"""A picture that was labelled is copied, whatever its size."""


def check_copy(labels: Labels, pictures_per_shard: int) -> None:
    """Raises RequestError: the request makes no sense."""
    if pictures_per_shard < 1:
        raise RequestError(f"--pictures-per-shard must be at least 1, not {pictures_per_shard}")
    if not {"address", "format"} <= labels.manifest["input"].keys():
        raise RequestError("--copy-to: the manifest of --labels does not say where the pictures are")


def copy_kept(
    selection: Selection, labels: Labels, address: str, per_shard: int, cluster: str | None, overwrite: bool,
    console: Console,
) -> None:  # fmt: skip
    """Copy the pictures of a selection, until all are there.

    Raises:
        RequestError: the target belongs to another request or cannot be used.
        JobFailedError: pictures cannot be read or written; finished shards stay.
    """
    output = Output(open_location(address, "--copy-to"))
    document = copy_manifest(selection, labels, per_shard)
    claim(output, document, overwrite)
    if output.is_finished() and not overwrite:
        console.print("Already copied: nothing to do (--overwrite starts anew).")
        return
    corpus = corpus_of(labels, output)
    with Lease(output, console):
        if overwrite:
            clear(output)
        output.write("manifest.json", json.dumps(document, indent=1, ensure_ascii=False).encode("utf-8"))
        images = zip(selection.images["image_id"].to_pylist(), selection.images["shard"].to_pylist(), strict=True)
        try:
            tasks = plan_copies(corpus, images, per_shard)
            copy_pictures(corpus, tasks, output.location.patient(), cluster, console)
        except (PicturesChangedError, RayError) as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise JobFailedError(f"{reason}: what is copied stays, the same command continues") from error
        output.finish()
    shards = sum(len(task.shards) for task in tasks)
    console.print(f"Copied {selection.kept:,} pictures into {shards:,} shards: {output.location.url}", highlight=False)


def copy_manifest(selection: Selection, labels: Labels, per_shard: int) -> dict[str, Any]:
    """What is copied, with a fingerprint of it."""
    digest = hashlib.sha256()
    for batch in selection.images.to_batches():
        digest.update("\0".join([*batch["image_id"].to_pylist(), ""]).encode("utf-8"))
    content = {
        "labels": labels.location.url,
        "labels_fingerprint": labels.manifest["fingerprint"],
        "conditions": asdict(selection.conditions),
        "pictures": selection.kept,
        "ids_sha256": digest.hexdigest(),
        "pictures_per_shard": per_shard,
    }
    canonical = json.dumps(content, sort_keys=True).encode("ascii")
    return {"fingerprint": hashlib.sha256(canonical).hexdigest(), **content}


def claim(output: Output, document: dict[str, Any], overwrite: bool) -> None:
    """Raises RequestError: the folder holds something else than copies of these pictures."""
    where = f"--copy-to {output.location.url}"
    try:
        if not output.bucket_exists():
            raise FileNotFoundError(output.location.path)
        begun = output.read_json("manifest.json")
        foreign = output.foreign_names() if begun is None else []
    except (*STORAGE_ERRORS, json.JSONDecodeError) as error:
        raise RequestError(f"{where} cannot be used: it is no folder that can be read and written") from error
    if foreign or (begun is not None and "ids_sha256" not in begun):
        raise RequestError(f"{where} holds other files: choose an empty folder")
    if begun is not None and begun["fingerprint"] != document["fingerprint"] and not overwrite:
        raise RequestError(
            f"{where} was begun with other conditions or pictures: "
            f"use the same ones, another folder, or --overwrite to start anew"
        )


def clear(output: Output) -> None:
    """Delete what an earlier request copied."""
    fs = output.location.fs
    names = ["_SUCCESS", *(f"{number:06}.tar" for number in finished_shards(output.location))]
    for name in names:
        if fs.exists((output.location / name).path):
            fs.rm_file((output.location / name).path)


def corpus_of(labels: Labels, output: Output) -> Corpus:
    """The corpus that was labelled.

    Raises:
        RequestError: it is not there any more.
    """
    source = labels.manifest["input"]
    try:
        corpus = list_corpus(
            open_location(source["address"], "--labels"), source["format"], output.location, limits=NO_LIMITS
        )
    except RequestError as error:
        raise RequestError(f"--copy-to: the pictures that were labelled cannot be found ({error})") from error
    return Corpus(corpus.root.patient(), corpus.format, corpus.shards, corpus.limits)
