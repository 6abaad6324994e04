"""Draw the paper's figures for images of your own: patch embeddings, attention, label maps, compensation.

Examples:
  cliper figure --figure methods --images photo.jpg --vocab vocab.txt --output figure.svg
  cliper figure --figure attention --images photo.jpg --points 0.3 0.6 --output figure.png
"""

import sys
from functools import partial

from rich.console import Console

from jobs.common.exit_codes import run_job
from jobs.figures.options import FigureOptions


def figure(options: FigureOptions, console: Console) -> None:
    """See `jobs.figures.job`."""
    from jobs.figures.job import figure  # takes seconds, for which --help should not wait

    figure(options, console)


main = partial(run_job, FigureOptions, figure, __doc__)

if __name__ == "__main__":
    sys.exit(main())
