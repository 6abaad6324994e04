"""Check every node of a cluster before a job: GPU, driver, memory, disk and storage. Fetch the weights on each node.

Examples:
  cliper preflight --input s3://bucket/shards --output s3://bucket/labels
  cliper preflight --clip ViT-B-16 --diffusion none --address auto
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from rich.console import Console

from cliper.settings import DIFFUSION_AFFINITY
from jobs.common.exit_codes import run_job
from jobs.common.options import DEFAULT_CLIP, DEFAULT_DIFFUSION, MethodOptions


@dataclass(frozen=True)
class PreflightOptions:
    """Options of the check. They have the names and meanings of the labelling job's options."""

    basic: ClassVar = ("input", "output", "clip", "diffusion", "affinity")
    input: str | None = None
    """Input to check: every node must be able to read a file of it."""
    output: str | None = None
    """Output to check: every node must be able to write there. The file written is deleted again."""
    clip: str = DEFAULT_CLIP
    """CLIP model. Its weights are fetched on every node."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model, or none. Its weights are fetched on every node."""
    affinity: str = DIFFUSION_AFFINITY
    """diffusion, clip or timm:NAME. clip and timm need no diffusion model; timm's weights are fetched on every node."""
    address: str | None = None
    """Ray cluster to check (default: RAY_ADDRESS, else Ray is started on this machine)."""


def preflight(options: PreflightOptions, console: Console) -> None:
    """See `jobs.common.nodes`."""
    from jobs.common.nodes import check  # takes seconds, for which --help should not wait

    models = MethodOptions(clip=options.clip, diffusion=options.diffusion, affinity=options.affinity)
    check(models, options.input, options.output, options.address, console)


main = partial(run_job, PreflightOptions, preflight, __doc__)

if __name__ == "__main__":
    sys.exit(main())
