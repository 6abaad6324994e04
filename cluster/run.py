"""The Ray Data pipeline: corpus, decode, label, write; and the run around it that ends with every image's row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from rich.console import Console

from cluster import session
from cluster.corpus.sources import Corpus, is_empty
from cluster.datasource import CorpusDatasource
from cluster.output.folder import Output
from cluster.output.resume import forget_passing_failures, take_stock
from cluster.progress import ProgressDisplay, report, start_counter
from cluster.session import ClusterOptions
from cluster.sizing import Cluster, Resources

TARGET_BLOCK_BYTES = 32 * 1024**2
"""Small blocks keep every actor busy and little in flight; a hundred photographs decode to this much and more."""
DECODE_BATCH_ROWS = 8


class IncompleteError(Exception):
    """The run ended without an error, and yet images have no row."""


@dataclass(frozen=True)
class Plan:
    """What a run does: read this corpus, decode and label it like this, write it there.

    Attributes:
        corpus: what to read.
        decode: a batch of `cluster.corpus.readers.Record` to decoded images.
        actor: class of the labelling actors; constructed with ``spec`` and the progress counter, called with decoded
            batches, returns rows of ``schema``.
        spec: what the actors need to know.
        schema: of the rows, with the manifest in its metadata; it has at least the columns ``image_id``, ``shard``,
            ``shard_images`` and ``status`` of `schemas.rows.ROW_SCHEMA`.
        output: where the rows go.
        cluster: where it runs, and in which portions.
    """

    corpus: Corpus
    decode: Callable[[pa.Table], pa.Table]
    actor: type
    spec: Any
    schema: pa.Schema
    output: Output
    cluster: ClusterOptions


@dataclass(frozen=True)
class Work:
    """What a run did: how many images had their row before it, and how many bytes of images it read."""

    images_before: int
    bytes_read: int


def complete(plan: Plan, console: Console, retry_failed: bool = False) -> Work:
    """Go on where earlier runs stopped, until every image of the corpus has exactly one row.

    Args:
        plan: what to do.
        console: for progress.
        retry_failed: label those failed images again whose failure may pass.

    Raises:
        RequestError: there is no such cluster.
        ray.exceptions.RayError: a stage failed; what is written stays and counts.
        IncompleteError: images have no row.
        OSError: the storage failed.
    """
    output = plan.output
    output.recover()
    if retry_failed:
        console.print(f"Trying again: {forget_passing_failures(output):,} failed images.", highlight=False)
    done = take_stock(output)
    if done.images:
        console.print(f"Continuing: {done.images:,} images are labelled already.", highlight=False)
    left, bytes_read = done.remaining(plan.corpus), 0
    if left.shards:
        resources = session.start(plan.cluster)
        console.print(resources.sentence(Cluster.now(), plan.cluster.batch_size), highlight=False)
        bytes_read = run_pipeline(replace(plan, corpus=left), resources, console)
        output.recover()
        check_complete(output, plan.corpus)
    return Work(done.images, bytes_read)


def check_complete(output: Output, corpus: Corpus) -> None:
    """Raises IncompleteError if an image of the corpus has no row; shards without images need none."""
    done = take_stock(output)
    begun = [shard.name for shard in done.remaining(corpus).shards if shard.done]
    unseen = [shard.name for shard in done.remaining(corpus).shards if not shard.done and not is_empty(corpus, shard)]
    if begun or unseen:
        raise IncompleteError(
            f"images of {len(begun) + len(unseen):,} shards have no row (such as {(begun + unseen)[0]}): "
            f"give the same command again"
        )


def run_pipeline(plan: Plan, resources: Resources, console: Console) -> int:
    """Run the pipeline over a corpus.

    Returns:
        Bytes of images that were read.

    Raises:
        ray.exceptions.RayError: a stage failed; what is written stays and counts.
    """
    configure(plan.output)
    counter = start_counter()
    source = CorpusDatasource(plan.corpus, partial(report_bytes, counter))
    rows = (
        ray.data.read_datasource(source, override_num_blocks=len(source.groups()))
        .map_batches(
            plan.decode,
            batch_format="pyarrow",
            batch_size=DECODE_BATCH_ROWS,
            memory=plan.corpus.limits.decode_memory_mb * 10**6,
        )
        .map_batches(
            plan.actor,
            fn_constructor_args=(plan.spec, counter),
            batch_format="pyarrow",
            batch_size=plan.cluster.batch_size,
            compute=ActorPoolStrategy(
                size=resources.actors,
                max_tasks_in_flight_per_actor=resources.batches_in_flight,
                max_concurrent_calls_per_actor=resources.calls_per_actor,
                enable_true_multi_threading=True,
            ),
            **resources.placement,
        )
    )
    total = len(plan.corpus.shards) if plan.corpus.format == "folder" else None
    with ProgressDisplay(counter, total, resources, console) as progress:
        rows.write_parquet(
            plan.output.location.path,
            filesystem=plan.output.location.arrow_fs(),
            mode="append",
            min_rows_per_file=plan.cluster.rows_per_file,
            schema=plan.schema,
            compression="zstd",
        )
    return progress.counts.bytes_read


def report_bytes(counter: ray.actor.ActorHandle, count: int) -> None:
    report(counter, bytes_read=count)


def configure(output: Output) -> None:
    """Ray Data's settings for this process's data sets."""
    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="image_id",
        checkpoint_path=(output.checkpoint / uuid4().hex).path,
        override_filesystem=output.location.arrow_fs(),
        delete_checkpoint_on_success=False,
    )
    context.target_max_block_size = TARGET_BLOCK_BYTES
    context.execution_no_progress_timeout_s = -1  # a growing cluster may wait for its first machine for hours
    context.enable_progress_bars = False
