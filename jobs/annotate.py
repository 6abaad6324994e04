"""Label images with your own vocabulary: masks and class scores, from object storage to Parquet."""

import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

from rich.console import Console

from cluster import session
from cluster.corpus.limits import Limits
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import CorpusFormat, list_corpus
from cluster.encoders import AnnotationEncoder
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.output.summary import Counts, count_rows, show_summary, summary_document
from cluster.run import Pipeline, run_to_completion
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.exit_codes import run_job
from jobs.common.options import MethodOptions
from jobs.common.plan import PlanOptions, show_plan
from jobs.common.request import find_models, read_vocabulary
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import labelling_manifest


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of the annotation job."""

    input: str
    """Folder, prefix, file or pattern with images: a local path or a URL such as s3://bucket/shards."""
    output: str
    """Folder or prefix for the results. The same command resumes there."""
    method: MethodOptions
    vocab: str | None = None
    """Vocabulary: one class per line, or "name: query one; query two"."""
    background: str | None = None
    """Background words: a file in the same format, or none (default: 25 common words)."""
    text_embeddings: str | None = None
    """Precomputed text embeddings (safetensors), used instead of CLIP's text tower."""
    templates: str = "car"
    """Prompt templates: car (15), openai_imagenet_80, or a file with one template per line, {} for the class."""
    format: Literal["auto"] | CorpusFormat = "auto"
    """Format of the input: tar shards, Parquet tables with an image column, or image files."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    limit: int | None = None
    """Maximum number of images to label, in the order of their names."""
    limits: Limits = field(default_factory=Limits)
    plan: PlanOptions = field(default_factory=PlanOptions)
    max_failed_fraction: float = 0.1
    """The job fails at the end if more than this share of the images failed. What is written stays."""
    retry_failed: bool = False
    """Retry transient failures: missing, forbidden, timed out, out of memory."""
    overwrite: bool = False
    """Delete what an earlier run wrote to the output and start over."""

    def check(self) -> None:
        """Raises RequestError: a number makes no sense."""
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")
        self.cluster.check()
        self.limits.check()
        self.plan.check()
        if not 0 <= self.max_failed_fraction <= 1:
            raise RequestError(f"--max-failed-fraction must be between 0 and 1, not {self.max_failed_fraction}")


def annotate(options: AnnotateOptions, console: Console) -> None:
    """The job from request to summary."""
    started = time.monotonic()
    options.check()
    vocabulary = read_vocabulary(options.vocab, options.background, options.templates, options.text_embeddings)
    output = Output(open_location(options.output, "--output"))
    corpus = list_corpus(
        open_location(options.input, "--input"), options.format, output.location, options.limit, options.limits
    )
    models = find_models(options.method, vocabulary.class_names)
    manifest = labelling_manifest(
        input={"address": corpus.root.url, "format": corpus.format, "limit": options.limit},
        vocabulary=vocabulary.manifest(),
        models=models.manifest(),
        settings=asdict(models.settings) | {"precision": options.method.precision},
    )
    output.check(manifest, options.overwrite)
    if output.is_finished() and not (options.overwrite or options.retry_failed):
        console.print("Already finished: nothing to do (--overwrite starts over).")
        show_summary(output.read_json("summary.json") or {}, output.location.url, console)
        return
    if options.plan.plan:
        resources = session.start(options.cluster)
        show_plan(options.plan, options.method, corpus, resources, options.cluster.batch_size, console)
        return
    corpus = replace(corpus, root=corpus.root.with_retries())
    with exclusive_run(output, manifest, console, options.overwrite) as output:
        embeddings = output.read_embeddings() or vocabulary.embed(models.clip)
        output.write_embeddings(embeddings)
        spec = models.spec(embeddings, options.method.precision)
        prepare = Preparer(spec.inputs, options.limits)
        pipeline = Pipeline(corpus, prepare, spec, AnnotationEncoder(), manifest, output, options.cluster)
        stats = run_to_completion(pipeline, console, options.retry_failed)
        counts = count_rows(output)
        new_images, seconds = counts.images - stats.images_before, time.monotonic() - started
        summary = summary_document(counts, vocabulary.class_names, new_images, seconds, stats.bytes_read)
        output.write_summary(summary)
        show_summary(summary, output.location.url, console)
        check_failures(counts, options.max_failed_fraction)


def check_failures(counts: Counts, allowed: float) -> None:
    """Raises JobFailedError: a larger fraction of the images failed than is allowed."""
    failed = counts.images - counts.ok
    if failed > allowed * counts.images:
        raise JobFailedError(
            f"{failed:,} of {counts.images:,} images failed, more than --max-failed-fraction {allowed:g} allows; "
            f"column error says why. Allow a larger fraction, or use --retry-failed to retry transient failures"
        )


main = partial(run_job, AnnotateOptions, annotate, __doc__)

if __name__ == "__main__":
    sys.exit(main())
