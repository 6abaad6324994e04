"""The Ray Data pipeline (read and prepare, label, write), and the resume loop that guarantees one row per image."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from rich.console import Console

from cliper.specs import SegmenterSpec
from cluster import session
from cluster.actors import Labeller
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import Corpus
from cluster.datasource import CorpusDatasource
from cluster.display import ProgressDisplay, Size
from cluster.encoders import Encoder
from cluster.options import ClusterOptions
from cluster.output.changes import note_versions
from cluster.output.flush import RowsOrSeconds
from cluster.output.folder import Output
from cluster.output.resume import forget_transient_failures, scan_output
from cluster.output.rows import map_rows_files
from cluster.progress import report, start_counter
from cluster.sizing import Cluster, Resources
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest

TARGET_BLOCK_BYTES = 16 * 1024**2
"""Small blocks keep every actor busy and little in flight; a dozen prepared images are this much."""


@dataclass(frozen=True)
class Pipeline:
    """What a run does.

    Attributes:
        corpus: what to read.
        prepare: makes prepared rows of images.
        spec: the method, for the labelling actors.
        encoder: makes rows of predictions.
        manifest: goes into the metadata of every rows file.
        output: where the rows go.
        cluster: where it runs, and with what batch sizes.
    """

    corpus: Corpus
    prepare: Preparer
    spec: SegmenterSpec
    encoder: Encoder
    manifest: Manifest
    output: Output
    cluster: ClusterOptions

    @property
    def schema(self) -> pa.Schema:
        """Of the rows."""
        return pa.schema([*self.encoder.schema, *self.prepare.kept.schema])


@dataclass(frozen=True)
class RunStats:
    """What a run did.

    Attributes:
        images_before: images that had their row before it.
        bytes_read: bytes of images that it read.
        per_second: images that it labelled a second, without its start.
        files: sizes by path of the rows files that have one row of every image.
        notes: what was said of processes that were lost or work around something.
    """

    images_before: int
    bytes_read: int
    per_second: float
    files: dict[str, int]
    notes: list[str]


def run_to_completion(pipeline: Pipeline, console: Console, retry_failed: bool = False) -> RunStats:
    """Continue where earlier runs stopped, until every image of the corpus has exactly one row.

    Args:
        pipeline: what to do.
        console: for progress.
        retry_failed: label images with transient failures again.

    Raises:
        RequestError: there is no such cluster.
        ray.exceptions.RayError: a stage failed; what is written stays and counts.
        JobFailedError: images have no row.
        OSError: the storage failed.
    """
    output = pipeline.output
    output.recover()
    if retry_failed:
        console.print(f"Trying again: {forget_transient_failures(output):,} failed images.")
    changes = note_versions(output, pipeline.corpus)
    if changes is not None and (changes or changes.gone):
        console.print(f"Since the last run: {changes}.")
    done = scan_output(output)
    if done.images:
        console.print(f"Continuing: {done.images:,} images are labelled already.")
    left, files = done.remaining(pipeline.corpus), done.files
    bytes_read, per_second, notes = 0, 0.0, list[str]()
    if left.shards:
        try:
            bytes_read, per_second, notes = label(replace(pipeline, corpus=left), console)
        except KeyboardInterrupt:
            console.print(f"{done.images + new_rows(output, done.files):,} images are saved.")
            raise
        output.recover()
        files = complete_files(output, pipeline.corpus)
    return RunStats(done.images, bytes_read, per_second, files, notes)


def new_rows(output: Output, files: Mapping[str, int]) -> int:
    """The number of rows in rows files that count, without these."""
    others = [path for path in output.rows_files() if path not in files]
    return sum(count for _, count in map_rows_files(output, ["status"], len, others))


def label(pipeline: Pipeline, console: Console) -> tuple[int, float, list[str]]:
    """Label a corpus on Ray. Returns as `run_pipeline`, raises as `run_to_completion`."""
    memory_bytes = pipeline.corpus.limits.decode_memory_bytes
    resources = replace(session.start(pipeline.cluster), task_memory_bytes=memory_bytes)
    check_memory(resources, pipeline.cluster)
    console.print(resources.sentence(Cluster.now(), pipeline.cluster.batch_size), soft_wrap=True)
    return run_pipeline(pipeline, resources, console)


def check_memory(resources: Resources, options: ClusterOptions) -> None:
    """Raises RequestError: this machine cannot run a read task, and will not grow. Ray would wait for ever."""
    most = Cluster.now().node_memory_bytes
    if session.is_local(options) and most < resources.task_memory_bytes:
        raise RequestError(
            f"decoding reserves {resources.task_memory_bytes / 1e9:.1f} GB and {socket.gethostname()} offers "
            f"{most / 1e9:.1f} GB to tasks: lower --decode-memory-mb"
        )


def complete_files(output: Output, corpus: Corpus) -> dict[str, int]:
    """Sizes by path of the rows files that have one row of every image.

    Raises:
        JobFailedError: an image has no row.
    """
    done = scan_output(output)
    left = done.remaining(corpus).shards
    if left:
        raise JobFailedError(
            f"images of {len(left):,} shards have no row (such as {left[0].name}): give the same command again"
        )
    return done.files


def run_pipeline(pipeline: Pipeline, resources: Resources, console: Console) -> tuple[int, float, list[str]]:
    """Run the pipeline over a corpus.

    Returns:
        Bytes of images that were read, images per second and notes, see `RunStats`.

    Raises:
        ray.exceptions.RayError: a stage failed; what is written stays and counts.
    """
    configure(pipeline.output)
    counter, batch = start_counter(pipeline.cluster.stall_timeout_s), pipeline.cluster.batch_size
    slots = max(1, int(Cluster.now().cpus) - (0 if resources.gpus_per_actor else resources.actors))
    source = CorpusDatasource(pipeline.corpus, pipeline.prepare, partial(report, counter), slots)
    rows = ray.data.read_datasource(
        source,
        override_num_blocks=len(source.groups()),
        # It also keeps Ray Data from fusing the read tasks into the actors.
        memory=resources.task_memory_bytes,
    ).map_batches(
        Labeller,
        fn_constructor_args=(pipeline.spec, pipeline.encoder, counter, batch, pipeline.cluster.stall_timeout_s),
        batch_format="pyarrow",
        batch_size=pipeline.spec.images_at_once(batch) if resources.gpus_per_actor else batch,
        compute=ActorPoolStrategy(
            # Fixed, because Ray does not tell a driver how far a cluster can grow. Ray Data works with the actors that
            # have started; the autoscaler sees the demand of the others.
            size=resources.actors,
            max_tasks_in_flight_per_actor=resources.batches_in_flight,
            max_concurrent_calls_per_actor=resources.calls_per_actor,
            enable_true_multi_threading=True,
        ),
        **resources.placement,
    )
    size = Size.of(pipeline.corpus, sum(map(len, source.groups())))
    with ProgressDisplay(counter, size, resources, console) as progress:
        rows.write_parquet(
            pipeline.output.data.path,
            filesystem=pipeline.output.location.arrow_fs(),
            mode="append",
            min_rows_per_file=RowsOrSeconds(pipeline.cluster.rows_per_file, 60 * pipeline.cluster.flush_minutes),
            schema=pipeline.schema.with_metadata(pipeline.manifest.parquet_metadata()),
            compression="zstd",
        )
    return progress.counts["bytes_read"], progress.per_second, progress.told


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
