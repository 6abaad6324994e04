"""How the baselines' authors evaluate them: settings, words and templates for each benchmark, as data."""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from cliper.baseline_settings import BaselineMethod, BaselineSettings

OWN_DATA = {True: "voc21", False: "voc20"}
"""The benchmark whose settings data of one's own gets, with and without background."""
SAME_PROTOCOL: dict[BaselineMethod, BaselineMethod] = {"clip": "sclip"}
"""SCLIP's authors evaluate plain CLIP as their own method."""


@dataclass(frozen=True)
class Protocol:
    """A baseline's evaluation on a benchmark, as its authors run it.

    Attributes:
        settings: with harness ``published``.
        templates: name of the prompt templates, one of `cliper.text.TEMPLATE_SETS`.
        queries: for every class its text queries, in the order of the data set's labels.
        background_queries: phrases for what is no class; empty where background does not count.
        not_known: what the authors do and could not be read, as part of a sentence; empty if all is known.
    """

    settings: BaselineSettings
    templates: str
    queries: tuple[tuple[str, ...], ...]
    background_queries: tuple[str, ...]
    not_known: str


def find_protocol(method: BaselineMethod, benchmark: str) -> Protocol:
    """How a method is evaluated on a benchmark; one of `cliper.published`, or of `OWN_DATA` for data of one's own."""
    facts = read_protocols()
    of_method = facts["methods"][SAME_PROTOCOL.get(method, method)]
    known: dict[str, Any] = of_method | of_method["datasets"][benchmark]
    names = {setting.name for setting in fields(BaselineSettings)}
    return Protocol(
        settings=BaselineSettings(harness="published", **{name: known[name] for name in names & known.keys()}),
        templates=known["templates"],
        queries=tuple(tuple(queries.split("; ")) for queries in facts["words"][known["words"]]),
        background_queries=tuple(facts["background"][known["background"]]) if "background" in known else (),
        not_known=known.get("not_known", ""),
    )


@cache
def read_protocols() -> dict[str, Any]:
    """The packaged facts of every baseline."""
    return json.loads(files("cliper").joinpath("protocols.json").read_text(encoding="utf-8"))
