"""The check of a cluster's nodes; see `cluster.preflight`."""

from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster import session
from cluster.corpus.inputs import open_input
from cluster.corpus.sources import list_corpus
from cluster.options import ClusterOptions
from cluster.preflight import Needs, check_nodes
from cluster.storage import open_location
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from schemas.errors import JobFailedError


def check(options: MethodOptions, input: str | None, output: str | None, address: str | None, console: Console) -> None:
    """Check all nodes and print a table.

    Raises:
        RequestError: the request is wrong.
        JobFailedError: some nodes are not ready.
    """
    models = find_models(options)
    place = open_location(output, "--output") if output else None
    first_file = None
    if input is not None:
        corpus = list_corpus(open_input(input), "auto", place)
        first_file = replace(corpus.root, path=corpus.shards[0].path)
    needs = Needs(models.clip, models.diffusion, first_file, place, models.timm)
    session.start(ClusterOptions(address=address))
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
