"""The Ray Data pipeline: corpus, decode, annotate, write."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from rich.console import Console

from cluster.annotator import Annotator, AnnotatorSpec
from cluster.datasource import CorpusDatasource
from cluster.decode import decode_batch
from cluster.output import Output
from cluster.progress import ProgressDisplay, report_bytes, start_counter
from cluster.session import Resources
from cluster.sources import Corpus
from schemas.manifest import Manifest
from schemas.rows import ROW_SCHEMA

TARGET_BLOCK_BYTES = 32 * 1024**2
"""Small blocks keep every actor busy and little in flight; a hundred photographs decode to this much and more."""
DECODE_BATCH_ROWS = 8


@dataclass(frozen=True)
class Plan:
    """What a run does: read this corpus, label it like this, write it there.

    Attributes:
        batch_size: pictures that an actor gets at a time.
        rows_per_file: rows in a Parquet file, at least (the last one may have fewer). A row that is not in a finished
            file is done again after a crash.
    """

    corpus: Corpus
    annotator: AnnotatorSpec
    output: Output
    manifest: Manifest
    resources: Resources
    batch_size: int
    rows_per_file: int


def annotate_corpus(plan: Plan, console: Console) -> int:
    """Run the pipeline until every image of the corpus has its row.

    Returns:
        Bytes of images that were read.

    Raises:
        ray.exceptions.RayError: a stage failed; what is written stays and counts.
    """
    configure(plan.output)
    counter = start_counter()
    source = CorpusDatasource(plan.corpus, partial(report_bytes, counter))
    limits = plan.corpus.limits
    placement = {"num_gpus": plan.resources.gpus_per_actor} if plan.resources.gpus_per_actor else {"num_cpus": 1}
    rows = (
        ray.data.read_datasource(source, override_num_blocks=len(source.groups()))
        .map_batches(
            decode_batch,
            fn_kwargs={"limits": limits},
            batch_format="pyarrow",
            batch_size=DECODE_BATCH_ROWS,
            memory=limits.decode_memory_mb * 10**6,
        )
        .map_batches(
            Annotator,
            fn_constructor_args=(plan.annotator, counter),
            batch_format="pyarrow",
            batch_size=plan.batch_size,
            compute=ActorPoolStrategy(
                size=plan.resources.actors,
                max_concurrent_calls_per_actor=plan.resources.calls_per_actor,
                enable_true_multi_threading=True,
            ),
            **placement,
        )
    )
    total = len(plan.corpus.shards) if plan.corpus.format == "folder" else None
    with ProgressDisplay(counter, total, console):
        rows.write_parquet(
            plan.output.location.path,
            filesystem=plan.output.location.arrow_fs(),
            mode="append",
            min_rows_per_file=plan.rows_per_file,
            schema=ROW_SCHEMA.with_metadata(plan.manifest.parquet_metadata()),
            compression="zstd",
        )
    bytes_read: Any = ray.get(counter.bytes_read.remote())
    return int(bytes_read)


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
    context.enable_progress_bars = False
