"""Evaluate on a labelled data set: mean IoU, accuracies and image-level figures beside the published ones."""

import sys
from functools import partial

from rich.console import Console

from jobs.common.exit_codes import run_job
from jobs.evaluation.options import EvaluateOptions


def evaluate(options: EvaluateOptions, console: Console) -> None:
    """See `jobs.evaluation.job`."""
    from jobs.evaluation.job import evaluate  # takes seconds, for which --help should not wait

    evaluate(options, console)


main = partial(run_job, EvaluateOptions, evaluate, __doc__)

if __name__ == "__main__":
    sys.exit(main())
