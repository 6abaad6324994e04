"""Check every node of a cluster before a job: GPU, driver, memory, disk and storage. Fetch the weights on each node."""

import sys
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cliper.models import DEFAULT_CLIP, DEFAULT_DIFFUSION
from cluster import session
from cluster.corpus.inputs import open_input
from cluster.corpus.sources import list_corpus
from cluster.preflight import Needs, check_nodes
from cluster.session import ClusterOptions
from cluster.storage import open_location
from jobs.common.exit_codes import run_job
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from schemas.errors import JobFailedError


@dataclass(frozen=True)
class PreflightOptions:
    """Options of the check. They have the names and meanings of the labelling job's options."""

    input: str | None = None
    """Input to check: every node must be able to read a file of it."""
    output: str | None = None
    """Output to check: every node must be able to write there. The file written is deleted again."""
    clip: str = DEFAULT_CLIP
    """CLIP model. Its weights are fetched on every node."""
    diffusion: str = DEFAULT_DIFFUSION
    """Diffusion model, or none. Its weights are fetched on every node."""
    address: str | None = None
    """Ray cluster to check (default: RAY_ADDRESS, else Ray is started on this machine)."""


def preflight(options: PreflightOptions, console: Console) -> None:
    """Check all nodes and print a table.

    Raises:
        RequestError: the request is wrong.
        JobFailedError: some nodes are not ready.
    """
    models = find_models(MethodOptions(clip=options.clip, diffusion=options.diffusion))
    output = open_location(options.output, "--output") if options.output else None
    first_file = None
    if options.input is not None:
        corpus = list_corpus(open_input(options.input), "auto", output)
        first_file = replace(corpus.root, path=corpus.shards[0].path)
    needs = Needs(models.clip, models.diffusion, first_file, output)
    session.start(ClusterOptions(address=options.address))
    table = Table("node", "check", "found", title="Nodes", title_justify="left")
    nodes = broken = 0
    for node, findings in check_nodes(needs):
        nodes += 1
        broken += not all(finding.ok for finding in findings)
        for index, finding in enumerate(findings):
            said = Text(finding.said, style="" if finding.ok else "red")
            table.add_row("" if index else node, finding.check, said, end_section=index == len(findings) - 1)
    console.print(table)
    if broken:
        raise JobFailedError(f"{broken} of {nodes} nodes are not ready; the table says why")
    console.print(f"All {nodes} nodes are ready.")


main = partial(run_job, PreflightOptions, preflight, __doc__)

if __name__ == "__main__":
    sys.exit(main())
