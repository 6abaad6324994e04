"""Label images with words of your own, and use the labels: one command for all jobs."""

import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from jobs.common.exit_codes import DONE, WRONG_REQUEST

COMMANDS = ("annotate", "evaluate", "filter", "export", "report", "figure", "preflight")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``jobs/COMMAND.py`` with the other arguments. Returns its exit code, 2 if there is no such command."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in {"-h", "--help"}:
        print(f"usage: cliper COMMAND [OPTIONS]\n\n{__doc__}\n")
        for command in COMMANDS:
            print(f"  {command:10} {about(command)}")
        print("\n`cliper COMMAND --help` lists the options of a command, `cliper --version` prints the version.")
        return DONE
    if name == "--version":
        print(version("cliper-annotate"))
        return DONE
    if name not in COMMANDS:
        similar = get_close_matches(name, COMMANDS, 1) or [", ".join(COMMANDS)]
        print(f"error: there is no command {name}, did you mean {similar[0]}?", file=sys.stderr)
        return WRONG_REQUEST
    sys.argv[0] = f"cliper {name}"
    return import_module(f"jobs.{name}").main(rest)


def about(command: str) -> str:
    """The first sentence of a job's description, without importing it."""
    spec = find_spec(f"jobs.{command}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec is not None and spec.origin is not None else ""
    description = (ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0]
    return " ".join(description.split()).partition(". ")[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
