"""Conditions on classes, from text such as ``dog``, ``dog>0.6``, ``car>0.5,truck>0.5`` or ``dog=0.02``, and as SQL.

A condition is a class name alone, or a class name, one of ``> >= < <=`` and a number. A comma separates conditions only
after a number, and the number follows the last operator. Names may therefore contain commas, spaces and operators.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.errors import RequestError

LARGEST_SCORE = 10.0
"""Scores start at 0 and rarely exceed 2. A larger threshold is a mistake, such as a percentage."""
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
CONDITION = re.compile(rf"\s*(?P<name>.+?)\s*(?P<operator>>=|<=|>|<)\s*(?P<number>{NUMBER})\s*(?:,|$)")
CALL = re.compile(r"\b(?P<what>score|area|probability)\s*\(\s*'(?P<name>(?:[^']|'')*)'\s*\)", re.IGNORECASE)


@dataclass(frozen=True)
class Condition:
    """Compares a class's score, or its share of the image's area, with a number; or asks for its mask (``present``)."""

    name: str
    operator: str = ""
    number: float = 0
    what: Literal["score", "area", "present"] = "score"

    def sql(self, class_names: Sequence[str]) -> str:
        if self.what == "present":
            return f"list_contains([a.category_id for a in annotations], {class_names.index(self.name) + 1})"
        number = f"{self.number!r}::FLOAT" if self.what == "score" else repr(self.number)
        return f"{quantity_sql(self.what, self.name, class_names)} {self.operator} {number}"


@dataclass(frozen=True)
class Conditions:
    """What an image must fulfil to be kept.

    Attributes:
        require: all of these hold.
        require_any: at least one of each group holds.
        exclude: none of these holds.
        where: additional SQL condition. It may call ``score('NAME')``, ``probability('NAME')`` and ``area('NAME')``.
        exclude_ids: it is none of these images.
    """

    require: tuple[Condition, ...] = ()
    require_any: tuple[tuple[Condition, ...], ...] = ()
    exclude: tuple[Condition, ...] = ()
    where: str | None = None
    exclude_ids: tuple[str, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """Every class that the conditions mention, without repetitions, in order."""
        groups = (self.require, *self.require_any, self.exclude)
        names = [condition.name for group in groups for condition in group]
        return list(dict.fromkeys([*names, *map(unquoted, CALL.finditer(self.where or ""))]))

    def sql(self, class_names: Sequence[str]) -> str:
        """All conditions as one SQL expression over the columns of `schemas.rows.ROW_SCHEMA`."""
        parts = [condition.sql(class_names) for condition in self.require]
        parts += [" OR ".join(condition.sql(class_names) for condition in group) for group in self.require_any]
        parts += [f"NOT {condition.sql(class_names)}" for condition in self.exclude]
        if self.where is not None:
            parts += [
                CALL.sub(lambda call: quantity_sql(call["what"].lower(), unquoted(call), class_names), self.where)
            ]
        if self.exclude_ids:
            parts.append(f"image_id NOT IN ({', '.join(map(quoted, self.exclude_ids))})")
        return " AND ".join(f"(\n{part}\n)" for part in parts) or "true"


def parse_conditions(flag: str, text: str) -> tuple[Condition, ...]:
    """Parse conditions on scores, separated by commas. A rest without a number is a class that must be present.

    Raises:
        RequestError: the text is empty, or a number is out of range.
    """
    found: list[Condition] = []
    position = 0
    while position < len(text) or not found:
        match = CONDITION.match(text, position)
        if match is None:
            name = text[position:].strip()
            if not name or re.search("[<>]", name):
                raise RequestError(
                    f"{flag} {text!r}: {name!r} is not a condition: write a class, or a class, one of > >= < <= and a "
                    f"number, such as dog>0.6"
                )
            found.append(Condition(name, what="present"))
            break
        number = float(match["number"])
        if not 0 <= number <= LARGEST_SCORE:
            raise RequestError(f"{flag} {text!r}: scores are between 0 and {LARGEST_SCORE:g}, not {match['number']}")
        found.append(Condition(match["name"], match["operator"], number))
        position = match.end()
    return tuple(found)


def parse_condition(flag: str, text: str) -> Condition:
    """Parse a single condition on a score.

    Raises:
        RequestError: the text is not a condition, or holds several.
    """
    conditions = parse_conditions(flag, text)
    if len(conditions) > 1:
        raise RequestError(f"{flag} {text!r} holds {len(conditions)} conditions: quote each one separately")
    return conditions[0]


def parse_area(flag: str, text: str) -> Condition:
    """Parse ``CLASS=SHARE``: the class covers at least this share of the image, between 0 and 1.

    Raises:
        RequestError: the text has another form, or the share is out of range.
    """
    name, equals, share = text.rpartition("=")
    if not equals or not name.strip() or not re.fullmatch(NUMBER, share.strip()):
        raise RequestError(f"{flag} {text!r} is not a share of a class: write CLASS=SHARE, such as dog=0.02")
    if not 0 <= float(share) <= 1:
        raise RequestError(f"{flag} {text!r}: the share must be between 0 and 1")
    return Condition(name.strip(), ">=", float(share), "area")


def check_class(flag: str, name: str, class_names: Sequence[str]) -> None:
    """Raises RequestError: the vocabulary lacks the class. The message suggests similar names."""
    if name in class_names:
        return
    close = difflib.get_close_matches(name, class_names) or list(class_names[:5])
    raise RequestError(f"{flag}: there is no class {name!r}: did you mean {' or '.join(map(repr, close))}?")


def unquoted(call: re.Match[str]) -> str:
    """The class name in a match of `CALL`."""
    return call["name"].replace("''", "'")


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def quantity_sql(what: str, name: str, class_names: Sequence[str]) -> str:
    """SQL for a class's score or probability, or for its share of the image's area (0 where it is absent)."""
    category_id = class_names.index(name) + 1
    if what == "score":
        return f"class_scores[{category_id}]"
    if what == "probability":
        return f"class_probabilities[{category_id}]"
    pixels = f"list_sum([a.area for a in annotations if a.category_id = {category_id}])"
    return f"(coalesce({pixels}, 0) / (width::BIGINT * height))"
