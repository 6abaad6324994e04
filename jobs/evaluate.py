"""Evaluate on a labelled data set: mean IoU, accuracies and image-level figures beside the published ones.

Examples:
  cliper evaluate --dataset voc21 --root s3://bucket/VOCdevkit --clip ViT-L-14 --json figures.json
  cliper evaluate --dataset folder --images images --masks masks --classes classes.txt --calibrate settings.json
"""

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
