"""From a request to tables of figures."""

import json
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from jobs.common.request import find_models
from jobs.evaluation.ablations import GRIDS, Changes
from jobs.evaluation.datasets import Dataset, find_dataset
from jobs.evaluation.evaluation import Evaluation, calibrate
from jobs.evaluation.figures import Figures, class_table, figures_table, markdown, notes
from jobs.evaluation.options import EvaluateOptions
from schemas.errors import JobFailedError


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """The job from request to tables."""
    options.check()
    dataset = find_dataset(options)
    if options.calibrate:
        results = calibrate(options, dataset, options.calibrate, console)
    else:
        rows = [requests_of(title, changes, options, dataset) for title, changes in rows_of(options).items()]
        results = [best([request.figures(console) for request in requests]) for requests in rows]
    show(options, results, console)
    failed = results[0]["failed"]
    images = results[0]["images"] + failed
    if failed > options.max_failed_fraction * images:
        raise JobFailedError(
            f"{failed:,} of {images:,} images could not be evaluated, more than --max-failed-fraction allows; "
            f"column error in the rows below {options.output} says why"
        )


def rows_of(options: EvaluateOptions) -> dict[str, Changes]:
    """The rows of the table by title: those of the ablations asked for, or a single one."""
    rows = {title: changes for grid in options.grid for title, changes in GRIDS[grid].items()}
    return rows or {options.choice.title: {}}


def requests_of(title: str, changes: Changes, options: EvaluateOptions, dataset: Dataset) -> list[Evaluation]:
    """The evaluations of which a row is the best. Raises RequestError as `Evaluation`."""
    if changes.get("compensation") != "head":
        return [Evaluation(title, replace(options, models=replace(options.models, **changes)), dataset)]
    heads = find_models(replace(options.models, **changes), dataset.class_names, dataset.benchmark).heads
    single = [replace(options.models, **(changes | {"head": head})) for head in range(heads)]
    return [
        Evaluation(f"{title} ({head} of 0 to {heads - 1})", replace(options, models=models), dataset)
        for head, models in enumerate(single)
    ]


def best(results: Sequence[Figures]) -> Figures:
    """The result with the highest mean IoU, the first of equal ones."""
    return max(results, key=lambda figures: figures["miou"] or 0)


def show(options: EvaluateOptions, results: Sequence[Figures], console: Console) -> None:
    """Print the figures and write them to files."""
    heading = f"{options.dataset}: {results[0]['images']:,} images"
    if len(results) == 1:
        console.print(class_table(results[0]))
    console.print(figures_table(heading, results))
    for note in notes(results):
        console.print(note, soft_wrap=True)
    if options.json:
        document = results[0] if len(results) == 1 else {"runs": results}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(heading, results), encoding="utf-8")
