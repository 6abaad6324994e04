"""One command for all jobs, and help that does not wait for models."""

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from jobs import cli
from jobs.common.command_line import parse_options
from tests.support.jobs import ROOT, run_here

SLOW = ("torch", "ray", "diffusers", "transformers", "open_clip", "timm")
"""Packages that take seconds to import."""


def test_every_command_is_listed_with_what_it_does() -> None:
    listed = run_here(cli.main, ["--help"], {})
    assert listed.returncode == 0
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(cli.COMMANDS)
    assert all(len(sentence) > 20 for _, sentence in lines)
    assert run_here(cli.main, [], {}).stdout == listed.stdout


def test_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    printed = run_here(cli.main, ["--version"], {})
    assert (printed.returncode, printed.stdout) == (0, f"{project['version']}\n")


def test_a_command_gets_its_arguments_and_says_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["filter", "--lables", "x"])
    assert ended.value.code == 2
    said = "".join(capsys.readouterr())
    assert "cliper filter --help" in said
    assert "--labels" in said, "what was meant"


def test_a_command_that_does_not_exist() -> None:
    ended = run_here(cli.main, ["anotate"], {})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: there is no command anotate, did you mean annotate?\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_imports_nothing_slow(command: str) -> None:
    program = (
        "import sys\nfrom jobs import cli\n"
        f"try:\n    cli.main(['{command}', '--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        f"print(*(set(sys.modules) & set({SLOW})), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stderr.strip() == ""
    assert "{None}" not in run.stdout
    assert "(default: None)" not in run.stdout
    assert "(default: )" not in run.stdout
    words = " ".join(run.stdout.replace("│", " ").split())
    assert not re.search(r"\(default: [^()]*\)\.? \(default", words), "a default is said twice"
    assert f"usage: cliper {command} " in run.stdout
    examples = [line for line in run.stdout.splitlines() if line.startswith(f"  cliper {command} ")]
    assert len(examples) == 2
    listed = run.stdout[run.stdout.index("╭") :]
    assert re.findall(r"^╭─ (\w+) options ─", listed, re.MULTILINE) == ["basic", "advanced"]
    for flag in re.findall(r"--[a-z-]+", " ".join(examples)):
        assert re.search(rf"{flag}\b", listed), flag


def test_help_may_be_read_in_part() -> None:
    """The pipe is closed before the program writes."""
    program = [sys.executable, "-m", "jobs.cli", "filter", "--help"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == ("", 0)


@dataclass(frozen=True)
class Shared:
    """Options that jobs share."""

    size: int = 3
    """A number."""


@dataclass(frozen=True)
class Request:
    """Options of a job."""

    basic: ClassVar = ("width", "name")

    name: str
    """A name that
    needs two lines."""
    shared: Shared = field(default_factory=lambda: Shared(size=5))
    width: int = 1
    """Another number."""


def test_options_are_parsed_in_groups_and_put_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(Request, ["--name", "a"], "") == Request("a", Shared(5), 1)
    assert parse_options(Request, ["--size", "7", "--name", "a", "--width", "2"], "") == Request("a", Shared(7), 2)
    with pytest.raises(SystemExit):
        parse_options(Request, ["--help"], "")
    words = " ".join(re.sub(r"[^\w()-]|-{3,}", " ", capsys.readouterr().out).split())
    assert (
        "basic options --width INT Another number (default 1) --name STR A name that needs two lines (required)"
        in words
    )
    assert words.endswith("advanced options --size INT A number (default 5)")
