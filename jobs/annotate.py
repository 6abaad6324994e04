"""Label images with your own vocabulary: masks and class scores, from object storage to Parquet."""

import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from cliper.published import profile_settings
from cliper.settings import Preset
from cliper.vocabulary import VocabularyRequest, read_vocabulary, synonymous_classes
from cluster import session
from cluster.corpus.inputs import Input, open_input
from cluster.corpus.limits import Limits
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import Corpus, CorpusFormat, in_brackets, list_corpus, passed_over_sentence, sampled
from cluster.encoders import AnnotationEncoder
from cluster.output.changes import find_changes
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.output.summary import Counts, count_rows, show_summary, summary_document
from cluster.run import Pipeline, run_to_completion
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.exit_codes import run_job
from jobs.common.methods import Method, MethodChoice, find_method
from jobs.common.options import MethodOptions
from jobs.common.plan import PlanOptions, show_plan
from jobs.report import MAX_IMAGES, ReportOptions, report
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest, labelling_manifest
from schemas.rows import Status

DAY_S = 86_400


@dataclass(frozen=True)
class AnnotateOptions:
    """Options of the annotation job."""

    input: str
    """Folder, prefix, file or pattern with images: a local path or a URL such as s3://bucket/{00000..00099}.tar;
    @LIST.txt for a file with one of these on each line."""
    output: str
    """Folder or prefix for the results. The same command resumes there."""
    models: MethodOptions = field(default_factory=lambda: MethodOptions(preset="open"))
    choice: MethodChoice = field(default_factory=MethodChoice)
    vocab: str | None = None
    """Vocabulary: one class per line, or "name: query one; query two"."""
    background: str | None = None
    """Background words: a file in the same format, +FILE to add its words to the packaged ones, or none (default: some
    hundred common things with preset open, else the 25 words published for PASCAL VOC). With preset open, words that
    mean the same as a class are left out."""
    text_embeddings: str | None = None
    """Precomputed text embeddings (safetensors), used instead of CLIP's text tower."""
    templates: str = "car"
    """Prompt templates: car (15), openai_imagenet_80, maskclip_85, or a file with one template per line, {} for the
    class."""
    format: Literal["auto"] | CorpusFormat = "auto"
    """Format of the input: tar shards, Parquet tables with an image column, or image files."""
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    limit: int | None = None
    """Maximum number of images to label, in the order of their names."""
    trial: Annotated[int | None, tyro.conf.arg(name="try")] = None
    """Label only about this many images, spread over the input, into OUTPUT-try, and write OUTPUT-try/report.html: a
    look at what becomes of your words before a long run."""
    limits: Limits = field(default_factory=Limits)
    plan: PlanOptions = field(default_factory=PlanOptions)
    max_failed_fraction: float = 0.1
    """The job fails at the end if more than this share of the images failed. What is written stays."""
    follow: float | None = None
    """Do not end: look for new and changed files of the input every so many seconds, and label them."""
    retry_failed: bool = False
    """Retry transient failures: missing, forbidden, timed out, out of memory, crashed."""
    overwrite: bool = False
    """Delete what an earlier run wrote to the output and start over."""

    def check(self) -> None:
        """Raises RequestError: a number makes no sense."""
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")
        if self.trial is not None and not 1 <= self.trial <= MAX_IMAGES:
            raise RequestError(f"--try must be between 1 and {MAX_IMAGES}, not {self.trial}")
        if self.trial is not None and self.limit is not None:
            raise RequestError("--try and --limit do not go together: give one of them")
        if self.follow is not None and not 1 <= self.follow <= DAY_S:
            raise RequestError(f"--follow must be between 1 and {DAY_S} seconds, not {self.follow:g}")
        if self.follow is not None and (self.trial is not None or self.plan.plan):
            raise RequestError("--follow labels without end: leave out --try and --plan")
        self.cluster.check()
        self.limits.check()
        self.plan.check()
        if self.plan.plan and self.choice.baseline:
            raise RequestError(f"--plan is for --method cliper: the speed of {self.choice.method} is not measured")
        if not 0 <= self.max_failed_fraction <= 1:
            raise RequestError(f"--max-failed-fraction must be between 0 and 1, not {self.max_failed_fraction}")


def annotate(options: AnnotateOptions, console: Console) -> None:
    """The job from request to summary, once or as long as it follows the input."""
    options.check()
    if options.trial is not None:
        options = replace(options, output=f"{options.output.rstrip('/')}-try", overwrite=True)
    job = LabellingJob.of(options)
    if options.models.profile is not None:
        shared = profile_settings(options.models.profile, job.method.clip.patch_size_px)
        chosen = ", ".join(f"{name} {value}" for name, value in shared.items())
        console.print(f"Profile {options.models.profile} sets {chosen}", soft_wrap=True)
    corpus = job.list_corpus()
    if corpus.passed_over:
        console.print(passed_over_sentence(corpus.passed_over).capitalize())
    manifest, output = job.manifest(corpus), job.output
    output.check(manifest, options.overwrite)
    if job.is_done(corpus) and not (options.overwrite or options.retry_failed):
        console.print("Already finished: nothing to do (--overwrite starts over).")
        show_again(output, console)
    elif options.plan.plan:
        resources = session.start(options.cluster)
        show_plan(options.plan, options.models, corpus, resources, options.cluster.batch_size, console)
    else:
        job.run(corpus, manifest, console)
    later = replace(options, overwrite=False, retry_failed=False)
    following = replace(job, options=later, source=job.source.with_retries())
    while options.follow is not None:
        time.sleep(options.follow)
        corpus = following.list_corpus()
        if not following.is_done(corpus):
            following.run(corpus, manifest, console)
    if options.trial is not None:
        folder = output.location.url
        report(ReportOptions(labels=folder, output=f"{folder}/report.html", pictures=options.trial), console)


@dataclass(frozen=True)
class LabellingJob:
    """What was asked for, checked: everything but the images, which may change from run to run."""

    options: AnnotateOptions
    vocabulary: VocabularyRequest
    method: Method
    source: Input
    output: Output

    @classmethod
    def of(cls, options: AnnotateOptions) -> "LabellingJob":
        """Raises RequestError: a part of the request is wrong."""
        preset: Preset = "release" if options.choice.baseline else options.models.preset
        vocabulary = read_vocabulary(
            options.vocab, options.background, options.templates, options.text_embeddings, preset
        )
        output = Output(open_location(options.output, "--output"))
        source = open_input(options.input)
        background = bool(vocabulary.background)
        method = find_method(options.choice, options.models, vocabulary.class_names, background)
        vocabulary.check_width(method.clip)
        return cls(options, vocabulary, method, source, output)

    def list_corpus(self) -> Corpus:
        """Raises RequestError: there are no images, or they cannot be listed."""
        options = self.options
        corpus = list_corpus(self.source, options.format, self.output.location, options.limit, options.limits)
        return corpus if options.trial is None else sampled(corpus, options.trial)

    def manifest(self, corpus: Corpus) -> Manifest:
        options = self.options
        return labelling_manifest(
            input={"address": self.source.address, "format": corpus.format, "limit": options.limit}
            | ({"try": options.trial} if options.trial else {}),
            vocabulary=self.vocabulary.manifest(),
            models=self.method.models,
            settings=self.method.settings | options.choice.manifest() | {"precision": options.models.precision},
        )

    def is_done(self, corpus: Corpus) -> bool:
        """True if the output is finished and no shard is new or has changed since."""
        output = self.output.with_retries()
        return output.is_finished() and not find_changes(output, corpus)

    def run(self, corpus: Corpus, manifest: Manifest, console: Console) -> None:
        """Label what has no row.

        Raises:
            RequestError: the output is another run's or request's, or there is no such cluster.
            ray.exceptions.RayError, OSError, JobFailedError: the run failed; what is written stays and counts.
        """
        started = time.monotonic()
        options = self.options
        corpus = replace(corpus, root=corpus.root.with_retries())
        with exclusive_run(self.output, manifest, console, options.overwrite) as output:
            manifest, embeddings = embed_words(output, manifest, self.vocabulary, self.method, console)
            spec = self.method.spec(embeddings)
            prepare = Preparer(spec.inputs, options.limits)
            encoder = AnnotationEncoder(self.method.cliper, embeddings.background_words)
            pipeline = Pipeline(corpus, prepare, spec, encoder, manifest, output, options.cluster)
            stats = run_to_completion(pipeline, console, options.retry_failed)
            counts = count_rows(output, stats.files, self.method.inputs)
            counts.passed_over.update(corpus.passed_over)
            new_images, seconds = counts.images - stats.images_before, time.monotonic() - started
            class_names = self.vocabulary.class_names
            summary = summary_document(counts, class_names, new_images, seconds, stats.bytes_read, stats.notes)
            output.write_summary(summary)
            show_summary(summary, output.location.url, console)
            check_failures(counts, options.max_failed_fraction)
            output.finish(stats.files)


def show_again(output: Output, console: Console) -> None:
    """Print the summary of a finished output, if it is still there."""
    try:
        show_summary(output.read_json("summary.json") or {}, output.location.url, console)
    except (OSError, KeyError, AttributeError, TypeError):
        console.print(f"{output.location.url}/summary.json is missing or damaged.", soft_wrap=True)


def embed_words(
    output: Output, manifest: Manifest, vocabulary: VocabularyRequest, method: Method, console: Console
) -> tuple[Manifest, VocabularyEmbeddings]:
    """Embed the vocabulary, unless an earlier run did, and say what became of the words."""
    embeddings = output.read_embeddings() or vocabulary.embed(method.clip, method.cliper.preset)
    output.write_embeddings(embeddings)
    manifest = with_facts(manifest, vocabulary, embeddings, method)
    output.write("manifest.json", manifest.to_json().encode("utf-8"))
    explain_words(manifest, embeddings, method, console)
    return manifest, embeddings


def with_facts(
    manifest: Manifest, vocabulary: VocabularyRequest, embeddings: VocabularyEmbeddings, method: Method
) -> Manifest:
    """The manifest with what follows from the embeddings: the background words that were left out."""
    left_out = [word for word in vocabulary.background if word not in embeddings.background_words]
    facts: dict[str, Any] = {"background_left_out": left_out}
    if method.cliper.preset == "open":
        facts["probabilities_measured"] = method.clip.open_defaults.measured or "not measured"
    return replace(manifest, derived=manifest.derived | facts)


def explain_words(manifest: Manifest, embeddings: VocabularyEmbeddings, method: Method, console: Console) -> None:
    """Say which words were left out, which classes mean the same, and whether probabilities are measured."""
    lines = []
    if left_out := manifest.derived["background_left_out"]:
        lines.append(f"Left out of the background, because a class means the same: {', '.join(left_out)}")
    for one, other in synonymous_classes(embeddings):
        lines.append(f"Warning: the classes {one!r} and {other!r} mean the same. Make them queries of one class.")
    if manifest.derived.get("probabilities_measured") == "not measured":
        lines.append(
            f"Probabilities of presence are not measured for {method.clip.name}: they follow from published thresholds "
            f"(jobs/evaluate.py --preset open --calibrate fits them)"
        )
    for line in lines:
        console.print(line, soft_wrap=True)


def check_failures(counts: Counts, allowed: float) -> None:
    """Raises JobFailedError: there are no images, or a larger fraction of them failed than is allowed."""
    if counts.images == counts.by_status[Status.NO_IMAGES]:
        raise JobFailedError(f"none of the {counts.images:,} shards has an image{in_brackets(counts.passed_over)}")
    failed = counts.images - counts.ok
    if failed > allowed * counts.images:
        raise JobFailedError(
            f"{failed:,} of {counts.images:,} images failed, more than --max-failed-fraction {allowed:g} allows; "
            f"column error says why. Allow a larger fraction, or use --retry-failed to retry transient failures"
        )


main = partial(run_job, AnnotateOptions, annotate, __doc__)

if __name__ == "__main__":
    sys.exit(main())
