"""Label images with your own vocabulary: masks and class scores, from object storage to Parquet.

Examples:
  cliper annotate --vocab vocab.txt --input photos --output labels --try 24
  cliper annotate --vocab vocab.txt --input s3://bucket/shards --output s3://bucket/labels --skip-absent
"""

import sys
from functools import partial

from rich.console import Console

from jobs.annotation.options import AnnotateOptions
from jobs.common.exit_codes import run_job


def annotate(options: AnnotateOptions, console: Console) -> None:
    """See `jobs.annotation.job`."""
    from jobs.annotation.job import annotate  # takes seconds, for which --help should not wait

    annotate(options, console)


main = partial(run_job, AnnotateOptions, annotate, __doc__)

if __name__ == "__main__":
    sys.exit(main())
