"""One way of labelling a data set, from the request to its figures; and the search for better thresholds."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from cliper.settings import Preset, presence_probability
from cliper.visual import add_examples
from cluster.corpus.examples import find_examples
from cluster.corpus.prepare import Preparer
from cluster.encoders import CountsEncoder
from cluster.output.folder import Output
from cluster.output.lease import exclusive_run
from cluster.run import Pipeline, run_to_completion
from cluster.storage import open_location
from jobs.common.methods import find_method
from jobs.common.statistics import calibration_error
from jobs.evaluation.calibration import choose_background_thresholds, choose_score_thresholds, fit_presence
from jobs.evaluation.comparison import compare_with_published
from jobs.evaluation.datasets import Dataset
from jobs.evaluation.figures import EvaluationCounts, Figures, count_rows, figures_of
from jobs.evaluation.options import EvaluateOptions
from schemas.errors import RequestError
from schemas.manifest import Manifest, labelling_manifest
from schemas.settings_file import SettingsFile


class Evaluation:
    """A request that is found and checked when it is made, before anything runs.

    Args:
        title: for tables.
        options: the request.
        dataset: the data set, or a part of it.
        file: in place of the settings file of the options.
        threshold_histogram: also count what thresholds on map values would change.

    Raises:
        RequestError: models, vocabulary, settings or output do not work.
    """

    def __init__(
        self, title: str, options: EvaluateOptions, dataset: Dataset, file: SettingsFile | None = None,
        threshold_histogram: bool = False,
    ) -> None:  # fmt: skip
        self.title, self.options, self.dataset, self.threshold_histogram = title, options, dataset, threshold_histogram
        self.method = find_method(
            options.choice, options.models, dataset.class_names, dataset.background, dataset.benchmark, file
        )
        self.preset: Preset = self.method.cliper.preset
        self.vocabulary = dataset.vocabulary(self.method.clip, options.templates, options.text_embeddings, self.preset)
        if options.examples is not None:
            examples = find_examples(options.examples, self.method.inputs, options.limits)
            self.vocabulary = self.vocabulary.with_examples(examples)
        self.manifest = self.request()
        self.output = Output(open_location(options.output, "--output") / self.manifest.fingerprint[:16])
        self.output.check(self.manifest, overwrite=False)

    def request(self) -> Manifest:
        options, labelled = self.options, self.dataset.labelled
        names = self.dataset.image_names
        return labelling_manifest(
            input={
                "dataset": self.dataset.name,
                "split": self.dataset.split,
                "address": labelled.corpus.root.url,
                "masks": labelled.masks.url,
                "first": names[0],
                "last": names[-1],
                "images": len(names),
                "background": self.dataset.background,
                "ignore": options.ignore,
            },
            vocabulary=self.vocabulary.manifest(),
            models=self.method.models,
            settings=self.method.settings
            | options.choice.manifest()
            | {
                "precision": options.models.precision,
                "threshold_histogram": self.threshold_histogram,
                "given_labels": options.given_labels,
            },
        )

    def run(self, console: Console) -> EvaluationCounts:
        """Label the images that are not labelled yet, and sum the rows.

        Raises:
            RequestError: another run writes to the same output, or models cannot be loaded.
            ray.exceptions.RayError: a stage failed; what is written stays.
        """
        console.print(f"{self.title}: {self.output.location.url}", soft_wrap=True)
        if not self.output.is_finished():
            with exclusive_run(self.output, self.manifest, console) as output:
                stats = run_to_completion(self.pipeline(output), console)
                output.finish(stats.files)
        return count_rows(self.output, len(self.dataset.classes), self.method.inputs)

    def pipeline(self, output: Output) -> Pipeline:
        labelled, options = self.dataset.labelled.with_retries(), self.options
        embeddings = output.read_embeddings()
        if embeddings is None:
            embeddings = self.vocabulary.embed(self.method.clip, self.preset)
            embeddings = add_examples(embeddings, self.vocabulary.examples, self.method.clip, self.method.cliper)
        output.write_embeddings(embeddings)
        spec = self.method.spec(embeddings)
        prepare = Preparer(spec.inputs, labelled.corpus.limits, labelled)
        encoder = CountsEncoder(len(self.dataset.classes), options.given_labels, self.threshold_histogram)
        return Pipeline(labelled.corpus, prepare, spec, encoder, self.manifest, output, options.cluster)

    def figures(self, console: Console) -> Figures:
        """Run, and put the figures beside the published one."""
        names, method = self.dataset.label_names, self.method
        counts = self.run(console)
        comparison = compare_with_published(self.dataset, method, self.options)
        seen = method.file.images_seen(self.dataset.labelled.masks.url, self.dataset.image_names)
        return figures_of(self.title, counts, names, method.score_thresholds, comparison, method.settings, seen)


def calibrate(options: EvaluateOptions, dataset: Dataset, target: Path, console: Console) -> list[Figures]:
    """Fit on every other image, and try the result on the rest. Written is only what is better there.

    Preset ``open``: the curve from scores to probabilities. Other presets: thresholds of every class.

    Returns:
        Figures of the rest, with the settings as they were and with the new ones.
    """
    if len(dataset.labelled.corpus.shards) < 2:
        raise RequestError("--calibrate needs at least two images")
    sample, rest = dataset.part(0, 2), dataset.part(1, 2)
    before = Evaluation("the other half as it was", options, rest)
    first = Evaluation("half of the images", options, sample).run(console)
    is_open = before.preset == "open"
    fit = fitted_presence if is_open else fitted_thresholds
    file = fit(options, before, sample, first, console)
    seen = {"masks": sample.labelled.masks.url, "images": sample.image_names}
    file = replace(file, tuned_on=[*file.tuned_on, seen])
    after = Evaluation("the other half, calibrated", options, rest, file)
    results = [request.figures(console) for request in (before, after)]
    old, new = (figures["f1" if is_open else options.calibrate_for] for figures in results)
    said = f"{old:.1f} -> {new:.1f}"
    if is_open:
        errors = [calibration_error_of(request, console) for request in (before, after)]
        said = f"F1 {said}, calibration error {errors[0]:.3f} -> {errors[1]:.3f}"
    if new > old:
        target.write_text(file.to_json(), encoding="utf-8")
        said = f"Calibrated: {said} on the other half. Written: {target}"
    else:
        said = f"Not better on the other half ({said}): nothing was written. Try more images."
    console.print(said)
    return results


def fitted_presence(
    options: EvaluateOptions, before: Evaluation, sample: Dataset, counts: EvaluationCounts, console: Console
) -> SettingsFile:
    """The settings file with the curve from scores to probabilities that fits a labelled sample.

    Raises:
        RequestError: every image of the sample shows every class, or none shows one.
    """
    present = counts.present[:, : len(sample.classes)] > 0
    if present.all() or not present.any():
        raise RequestError("--calibrate needs images that show some of the classes and lack others")
    file = before.method.file
    return replace(file, settings=file.settings | fit_presence(counts.scores, present))


def fitted_thresholds(
    options: EvaluateOptions, before: Evaluation, sample: Dataset, counts: EvaluationCounts, console: Console
) -> SettingsFile:
    """The settings file with the thresholds of every class that fit a labelled sample."""
    method, names, file = before.method, sample.class_names, before.method.file
    if not options.given_labels:
        file = choose_score_thresholds(file, names, counts, method.settings["score_threshold"])
    if options.calibrate_for == "miou":
        second = Evaluation("the same with thresholds on scores", options, sample, file, threshold_histogram=True)
        file = choose_background_thresholds(file, names, second.output, second.run(console))
    return file


def calibration_error_of(request: Evaluation, console: Console) -> float:
    counts, settings = request.run(console), request.method.settings
    probabilities = presence_probability(counts.scores, settings["presence_midpoint"], settings["presence_slope"])
    return calibration_error(probabilities, counts.present)
