"""Evaluate on a labelled data set: mean IoU, accuracies and image-level figures beside the published ones."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from cliper.baselines import BaselineMethod, BaselineSettings
from cliper.proxy import DEFAULT_PROXY
from cluster.actors import BaselineSpec, SegmenterSpec
from cluster.corpus.limits import Limits
from cluster.corpus.prepare import Preparer
from cluster.encoders import CountsEncoder
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.run import Pipeline, run_to_completion
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.exit_codes import run_to_exit_code
from jobs.common.options import MethodOptions
from jobs.common.request import Models, find_models
from jobs.evaluation.ablations import GRIDS, Grid
from jobs.evaluation.calibration import Goal, choose_background_thresholds, choose_score_thresholds
from jobs.evaluation.datasets import FOLDER, Dataset, find_dataset, find_folder
from jobs.evaluation.figures import Figures, Tally, class_table, figures_of, figures_table, markdown, tally
from schemas.errors import JobFailedError, RequestError
from schemas.manifest import Manifest, labelling_manifest
from schemas.settings_file import Tuning

Method = Literal["cliper"] | BaselineMethod
DatasetName = Literal[
    "voc21", "voc20", "context60", "context59", "coco_object", "coco_stuff", "ade20k", "cityscapes", "folder"
]
PRESENT_PROBABILITY = 0.5
"""A baseline takes a class for present where its largest probability is above this."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the evaluation job."""

    dataset: DatasetName
    """Labelled data set as its makers lay it out, below --root; or folder, with --images, --masks and --classes."""
    models: MethodOptions
    root: str | None = None
    """Where the data set is: a local folder or a URL."""
    images: str | None = None
    """Folder of pictures."""
    masks: str | None = None
    """Folder of index masks: PNG files with the pictures' names."""
    classes: str | None = None
    """Class list of a folder: one class per line in the order of mask values, or "name: query one; query two"."""
    background: bool = True
    """In a folder's masks 0 is background and 1 the first class; --no-background: 0 is the first class."""
    ignore: tuple[int, ...] = (255,)
    """Values in a folder's masks of pixels that do not count."""
    method: Method = "cliper"
    """The method to evaluate; the others are baselines without compensation, read out as SCLIP and ProxyCLIP are."""
    proxy: str = DEFAULT_PROXY
    """Second model for proxyclip: timm's name of a DINO transformer, or local-dir:FOLDER."""
    text_embeddings: str | None = None
    """Ready text embeddings (safetensors) in place of CLIP's text tower."""
    templates: str | None = None
    """Prompt templates: car, openai_imagenet_80 or a file (default: the published ones)."""
    given_labels: bool = False
    """Tell the method which classes each picture shows: figures of pseudo-masks (paper table 3)."""
    grid: tuple[Grid, ...] = ()
    """Evaluate every row of these ablation tables of the paper."""
    calibrate: Path | None = None
    """Look for thresholds of every class on half of the pictures, try them on the other half, and write a settings file
    for --settings if they are better."""
    calibrate_for: Goal = "miou"
    """What the thresholds shall raise."""
    output: str = "evaluations"
    """Folder or prefix for the rows that figures are summed from; each request has a folder of its own there, where the
    same command goes on."""
    json: Path | None = None
    """File for the figures."""
    markdown: Path | None = None
    """File for the figures as a Markdown table."""
    limit: int | None = None
    """Only so many pictures, the first by name."""
    limits: Limits = field(default_factory=Limits)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    max_failed_fraction: float = 0.0
    """The job fails in the end if more than this share of the pictures could not be evaluated."""

    def check(self) -> None:
        """Raises RequestError: options do not go together, or a number makes no sense."""
        self.cluster.check()
        self.limits.check()
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be at least 1, not {self.limit}")
        if not 0 <= self.max_failed_fraction <= 1:
            raise RequestError(f"--max-failed-fraction must be between 0 and 1, not {self.max_failed_fraction}")
        if self.method != "cliper" and (self.grid or self.calibrate):
            raise RequestError(f"--grid and --calibrate are for --method cliper, not {self.method}")
        if self.grid and self.calibrate:
            raise RequestError("--grid and --calibrate do not go together: give one of them")
        for path in (self.json, self.markdown, self.calibrate):
            if path is not None and not path.resolve().parent.is_dir():
                raise RequestError(f"{path}: the folder does not exist")

    def find_dataset(self) -> Dataset:
        if self.dataset == FOLDER:
            return find_folder(
                self.images, self.masks, self.classes, self.background, self.ignore, self.limit, self.limits
            )
        return find_dataset(self.dataset, self.root, self.limit, self.limits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code: 0 done, 1 failed, 2 wrong request."""
    options = tyro.cli(EvaluateOptions, args=arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
    return run_to_exit_code(lambda: evaluate(options, Console()), Console(stderr=True))


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """The job from request to tables."""
    options.check()
    dataset = options.find_dataset()
    if options.calibrate:
        results = calibrate(options, dataset, options.calibrate, console)
    else:
        rows = {title: changes for grid in options.grid for title, changes in GRIDS[grid].items()}
        variants = rows or {options.method: {}}
        requests = [
            Evaluation(title, replace(options, models=replace(options.models, **changes)), dataset)
            for title, changes in variants.items()
        ]
        results = [request.figures(request.run(console)) for request in requests]
    show(options, results, console)
    failed, images = results[0].failed, results[0].images + results[0].failed
    if failed > options.max_failed_fraction * images:
        raise JobFailedError(
            f"{failed:,} of {images:,} pictures could not be evaluated, more than --max-failed-fraction allows; "
            f"column error in the rows below {options.output} says why"
        )


def show(options: EvaluateOptions, results: Sequence[Figures], console: Console) -> None:
    """Print the figures and write them to files."""
    heading = f"{options.dataset}: {results[0].images:,} pictures"
    if len(results) == 1:
        console.print(class_table(results[0]))
    console.print(figures_table(heading, results))
    if options.json:
        documents = [figures.document() for figures in results]
        document = documents[0] if len(documents) == 1 else {"runs": documents}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(heading, results), encoding="utf-8")


class Evaluation:
    """One way of labelling one data set; found and checked when it is made, before anything runs.

    Args:
        title: for tables.
        options: the request.
        dataset: the data set, or a part of it.
        tuning: thresholds in place of those of ``--settings``.
        winners: also count what thresholds on map values would change.

    Raises:
        RequestError: models, vocabulary, settings or output do not work.
    """

    def __init__(
        self, title: str, options: EvaluateOptions, dataset: Dataset, tuning: Tuning | None = None,
        winners: bool = False,
    ) -> None:  # fmt: skip
        self.title, self.options, self.dataset, self.winners = title, options, dataset, winners
        methods = options.models if options.method == "cliper" else replace(options.models, diffusion="none")
        self.models: Models = find_models(methods, dataset.class_names, dataset.benchmark, tuning)
        self.vocabulary = dataset.vocabulary(self.models.clip, options.templates, options.text_embeddings)
        self.manifest = self.request()
        self.output = Output(open_location(options.output, "--output") / self.manifest.fingerprint[:16])
        self.output.check(self.manifest, overwrite=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the method or the baseline."""
        return asdict(self.models.settings if self.options.method == "cliper" else self.baseline_settings())

    def baseline_settings(self) -> BaselineSettings:
        """What was given, else SCLIP's and ProxyCLIP's: a threshold of 0.1 where background counts."""
        given = self.options.models
        background = 0.1 if self.dataset.background else 0.0
        try:
            return BaselineSettings(
                self.models.settings.shorter_side_px,
                40.0 if given.logit_scale is None else given.logit_scale,
                background if given.background_threshold is None else given.background_threshold,
            )
        except ValueError as error:
            raise RequestError(str(error)) from error

    def request(self) -> Manifest:
        options, labelled = self.options, self.dataset.labelled
        names = [shard.name for shard in labelled.corpus.shards]
        return labelling_manifest(
            input={
                "dataset": self.dataset.name,
                "address": labelled.corpus.root.url,
                "masks": labelled.masks.folder.url,
                "first": names[0],
                "last": names[-1],
                "images": len(names),
                "background": self.dataset.background,
                "ignore": options.ignore,
            },
            vocabulary=self.vocabulary.manifest(),
            models=self.models.manifest() | ({"proxy": options.proxy} if options.method == "proxyclip" else {}),
            settings=self.settings
            | {"method": options.method, "precision": options.models.precision, "winners": self.winners}
            | {"given_labels": options.given_labels},
        )

    def run(self, console: Console) -> Tally:
        """Label the pictures that are not labelled yet, and sum the rows.

        Raises:
            RequestError: another run writes to the same output, or models cannot be loaded.
            ray.exceptions.RayError: a stage failed; what is written stays.
        """
        console.print(f"{self.title}: {self.output.location.url}", highlight=False, soft_wrap=True)
        if not self.output.is_finished():
            with exclusive_run(self.output, self.manifest, console) as output:
                run_to_completion(self.pipeline(output), console)
        return tally(self.output, len(self.dataset.classes))

    def pipeline(self, output: Output) -> Pipeline:
        labelled = self.dataset.labelled.with_retries()
        embeddings = output.read_embeddings() or self.vocabulary.embed(self.models.clip)
        output.write_embeddings(embeddings)
        precision, method = self.options.models.precision, self.options.method
        spec: SegmenterSpec
        if method == "cliper":
            spec = self.models.spec(embeddings, precision)
        else:
            proxy = self.options.proxy if method == "proxyclip" else None
            spec = BaselineSpec(method, self.models.clip, embeddings, self.baseline_settings(), precision, proxy)
        prepare = Preparer(spec.inputs, labelled.corpus.limits, labelled, self.dataset.background)
        encoder = CountsEncoder(len(self.dataset.classes), self.options.given_labels, self.winners)
        return Pipeline(labelled.corpus, prepare, spec, encoder, self.manifest, output, self.options.cluster)

    def figures(self, sums: Tally) -> Figures:
        settings = self.models.settings
        thresholds = settings.class_score_thresholds or (settings.score_threshold,) * len(self.dataset.classes)
        if self.options.method != "cliper":
            thresholds = (PRESENT_PROBABILITY,) * len(self.dataset.classes)
        published = self.dataset.published(self.models.clip, settings) if self.options.method == "cliper" else None
        return figures_of(self.title, sums, self.dataset.label_names, thresholds, published, self.settings)


def calibrate(options: EvaluateOptions, dataset: Dataset, target: Path, console: Console) -> list[Figures]:
    """Look for thresholds on every other picture, and try them on the rest.

    Returns:
        Figures of the rest, with the settings as they were and with the new thresholds.
    """
    if len(dataset.labelled.corpus.shards) < 2:
        raise RequestError("--calibrate needs at least two pictures")
    sample, rest = dataset.part(0, 2), dataset.part(1, 2)
    before = Evaluation("the other half as it was", options, rest)
    asked = before.models.tuning
    first = Evaluation("half of the pictures", options, sample).run(console)
    tuning = choose_score_thresholds(asked, dataset.class_names, first, before.models.settings.score_threshold)
    if options.calibrate_for == "miou":
        counted = Evaluation("the same with thresholds on scores", options, sample, tuning, winners=True)
        sums = counted.run(console)
        tuning = choose_background_thresholds(tuning, dataset.class_names, counted.output, sums)
    after = Evaluation("the other half, calibrated", options, rest, tuning)
    results = [request.figures(request.run(console)) for request in (before, after)]
    old, new = (getattr(figures, options.calibrate_for) for figures in results)
    if new > old:
        target.write_text(tuning.to_json(), encoding="utf-8")
        console.print(f"Calibrated: {old:.1f} -> {new:.1f} on the other half. Written: {target}", highlight=False)
    else:
        console.print(
            f"Not better on the other half ({old:.1f} -> {new:.1f}): nothing was written. Try more pictures.",
            highlight=False,
        )
    return results


if __name__ == "__main__":
    sys.exit(main())
