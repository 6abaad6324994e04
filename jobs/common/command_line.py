"""Options of a job as a command line.

A job's options are a dataclass. Fields that are dataclasses hold options that jobs share. On the command line all are
options without prefixes, in two groups: those that ``basic`` of the job's class names, and the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import docstring_parser
import tyro

Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """An option: its name, its type as tyro reads it, and its default, ``MISSING`` if it must be given."""

    name: str
    kind: Any
    default: Any

    def field(self) -> tuple[str, Any, Any]:
        """For `make_dataclass`."""
        return self.name, self.kind, field() if self.default is MISSING else field(default=self.default)


def parse_options(kind: type[Options], arguments: Sequence[str] | None, description: str | None) -> Options:
    """Parse arguments, by default those of the process. Ends the process with help, or with exit code 2."""
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
    unhashed: Any = kind  # mypy does not see that classes can be hashed
    parsed: Any = tyro.cli(grouped(unhashed), args=arguments, description=description, config=config)
    values: dict[str, Any] = {}
    for group in fields(parsed):
        values |= vars(getattr(parsed, group.name))
    return with_values(kind, values)


@cache  # tyro looks for the source of classes that it has not seen, which takes time
def grouped(kind: Any) -> type:
    """A dataclass with the options as fields of the dataclasses ``basic`` and ``advanced``."""
    options = {option.name: option for option in options_of(kind)}
    basic = [options.pop(name) for name in vars(kind)["basic"]]
    groups = {"basic": basic, "advanced": list(options.values())}
    return make_dataclass("Grouped", [
        (name, make_dataclass(name, [option.field() for option in group], kw_only=True))
        for name, group in groups.items() if group
    ])  # fmt: skip


def options_of(kind: Any, instance: Any = None) -> Iterator[Option]:
    """The options of a class, with an instance's values as defaults if there is one."""
    hints, about = get_type_hints(kind, include_extras=True), help_texts(kind)
    for entry in fields(kind):
        default = default_of(entry) if instance is None else getattr(instance, entry.name)
        if is_dataclass(hints[entry.name]):
            yield from options_of(hints[entry.name], None if default is MISSING else default)
        else:
            yield Option(entry.name, explained(hints[entry.name], about.get(entry.name), default), default)


def explained(kind: Any, about: str | None, default: Any) -> Any:
    """A type with its text. tyro adds the default, unless there is none or the text says it."""
    shown: dict[str, Any] = {} if about is None else {"help": about}
    if default is None or "(default" in (about or ""):
        shown["help_behavior_hint"] = ""
    return Annotated[kind, tyro.conf.arg(**shown)] if shown else kind


def default_of(entry: Field) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def help_texts(kind: type) -> dict[str, str]:
    """The texts below the fields of a class and its bases. tyro would keep their line breaks."""
    parsed = (docstring_parser.parse_from_object(base) for base in reversed(kind.__mro__) if base is not object)
    return {param.arg_name: " ".join((param.description or "").split()) for found in parsed for param in found.params}


def with_values(kind: Any, values: Mapping[str, Any]) -> Any:
    """An instance with these values of its options, by name."""
    hints = get_type_hints(kind)
    found = {
        entry.name: with_values(hints[entry.name], values) if is_dataclass(hints[entry.name]) else values[entry.name]
        for entry in fields(kind)
    }
    return kind(**found)
