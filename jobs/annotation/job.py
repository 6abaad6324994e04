"""From a request to rows of labels and a summary."""

import shlex
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cliper.files import parse_text
from cliper.published import profile_settings
from cliper.settings import Preset
from cliper.visual import add_examples
from cliper.vocabulary import VocabularyRequest, read_vocabulary, synonymous_classes
from cluster import session
from cluster.corpus.examples import find_examples
from cluster.corpus.inputs import Input, open_input
from cluster.corpus.prepare import Preparer
from cluster.corpus.sources import (
    Corpus,
    in_brackets,
    kept_columns,
    list_corpus,
    only_images,
    passed_over_sentence,
    sampled,
)
from cluster.encoders import AnnotationEncoder
from cluster.output.changes import find_changes
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.output.summary import Counts, count_rows, show_summary, summary_document
from cluster.run import Pipeline, run_to_completion
from cluster.storage import open_location
from jobs.annotation.options import AnnotateOptions
from jobs.common.methods import Method, find_method
from jobs.common.plan import show_plan
from jobs.report import ReportOptions, report
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import JobFailedError, RequestError
from schemas.image_ids import digest_of, parse_image_ids
from schemas.manifest import Manifest, labelling_manifest
from schemas.rows import Status


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
    relabel: tuple[str, ...]

    @classmethod
    def of(cls, options: AnnotateOptions) -> "LabellingJob":
        """Raises RequestError: a part of the request is wrong."""
        preset: Preset = "release" if options.choice.baseline else options.models.preset
        vocabulary = read_vocabulary(
            options.vocab, options.background, options.templates, options.text_embeddings, preset,
            wordless=options.examples is not None,
        )  # fmt: skip
        output = Output(open_location(options.output, "--output"))
        source = open_input(options.input)
        background = bool(vocabulary.background)
        method = find_method(options.choice, options.models, vocabulary.class_names, background)
        vocabulary.check_width(method.clip)
        if options.examples is not None:
            vocabulary = vocabulary.with_examples(find_examples(options.examples, method.inputs, options.limits))
        relabel = parse_text("--relabel", options.relabel, parse_image_ids) if options.relabel is not None else ()
        return cls(options, vocabulary, method, source, output, relabel)

    def list_corpus(self) -> Corpus:
        """Raises RequestError: there are no images, or they cannot be listed."""
        options = self.options
        corpus = list_corpus(
            self.source, options.format, self.output.location, options.limit, options.limits, options.columns
        )
        if self.relabel:
            corpus, unknown = only_images(corpus, self.relabel)
            if unknown:
                raise RequestError(
                    f"--relabel {options.relabel}: {len(unknown):,} of {len(self.relabel):,} images are in no file of "
                    f"{self.source} (such as {unknown[0]})"
                )
        return corpus if options.trial is None else sampled(corpus, options.trial)

    def manifest(self, corpus: Corpus) -> Manifest:
        options = self.options
        return labelling_manifest(
            input={"address": self.source.address, "format": corpus.format, "limit": options.limit}
            | options.columns.manifest()
            | ({"try": options.trial} if options.trial else {})
            | ({"only_sha256": digest_of(sorted(self.relabel))} if self.relabel else {}),
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
        class_names = self.vocabulary.class_names
        kept = kept_columns(corpus)
        corpus = replace(corpus, root=corpus.root.with_retries())
        with exclusive_run(self.output, manifest, console, options.overwrite) as output:
            manifest, embeddings = embed_words(output, manifest, self.vocabulary, self.method, console)
            spec = self.method.spec(embeddings)
            prepare = Preparer(spec.inputs, options.limits, kept=kept)
            encoder = AnnotationEncoder(self.method.cliper, embeddings.background_words, class_names)
            pipeline = Pipeline(corpus, prepare, spec, encoder, manifest, output, options.cluster)
            stats = run_to_completion(pipeline, console, options.retry_failed)
            counts = count_rows(output, stats.files, self.method.inputs)
            counts.passed_over.update(corpus.passed_over)
            new_images, seconds = counts.images - stats.images_before, time.monotonic() - started
            summary = summary_document(
                counts, class_names, new_images, seconds, stats.per_second, stats.bytes_read, stats.notes
            )
            output.write_summary(summary)
            show_summary(summary, output.location.url, console)
            check_failures(counts, options.max_failed_fraction)
            output.finish(stats.files)
        if options.trial is None:
            show_next_steps(output.location.url, next(iter(summary["images_by_class"]), class_names[0]), console)


def show_next_steps(labels: str, class_name: str, console: Console) -> None:
    """Print commands for what people do next."""
    console.print("Next:")
    for command, *arguments in [
        ("report", "--output", "report.html"),
        ("filter", "--require", class_name, "--output", "kept.parquet"),
        ("export", "--output", "coco.json"),
    ]:
        console.print(f"  {program(command)} --labels {shlex.quote(labels)} {shlex.join(arguments)}", soft_wrap=True)


def program(command: str) -> str:
    """How a job is started: in the way in which this one was, or else by its name."""
    started = Path(sys.argv[0])
    if started.parent.name == "jobs":
        return f"{as_typed(Path(sys.executable))} {shlex.quote(str(started.with_stem(command)))}"
    return f"{as_typed(Path(sys.executable).with_name('cliper'))} {command}"


def as_typed(program: Path) -> str:
    """The name of a program if the shell finds it by that, else its path."""
    return program.name if shutil.which(program.name) == str(program) else shlex.quote(str(program))


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
    embeddings = output.read_embeddings()
    if embeddings is None:
        embeddings = vocabulary.embed(method.clip, method.cliper.preset)
        embeddings = add_examples(embeddings, vocabulary.examples, method.clip, method.cliper)
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
            f"Probabilities of presence and the logit scale are not measured for {method.clip.name}: they follow from "
            f"published settings of the nearest encoder "
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
