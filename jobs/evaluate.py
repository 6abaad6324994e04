"""Evaluate on a labelled data set: mean IoU, accuracies and image-level figures beside the published ones."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from jobs.common.exit_codes import run_job
from jobs.evaluation.ablations import GRIDS
from jobs.evaluation.evaluation import Evaluation, calibrate
from jobs.evaluation.figures import Figures, class_table, figures_table, markdown
from jobs.evaluation.options import EvaluateOptions
from schemas.errors import JobFailedError


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
        results = [request.figures(console) for request in requests]
    show(options, results, console)
    failed = results[0]["failed"]
    images = results[0]["images"] + failed
    if failed > options.max_failed_fraction * images:
        raise JobFailedError(
            f"{failed:,} of {images:,} images could not be evaluated, more than --max-failed-fraction allows; "
            f"column error in the rows below {options.output} says why"
        )


def show(options: EvaluateOptions, results: Sequence[Figures], console: Console) -> None:
    """Print the figures and write them to files."""
    heading = f"{options.dataset}: {results[0]['images']:,} images"
    if len(results) == 1:
        console.print(class_table(results[0]))
    console.print(figures_table(heading, results))
    if options.json:
        document = results[0] if len(results) == 1 else {"runs": results}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(markdown(heading, results), encoding="utf-8")


main = partial(run_job, EvaluateOptions, evaluate, __doc__)

if __name__ == "__main__":
    sys.exit(main())
