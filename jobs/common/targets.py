"""Checks of the jobs that read labels, before they write."""

from rich.console import Console

from cliper.files import STORAGE_ERRORS
from cluster.output.folder import Output
from cluster.output.rows import Labels
from cluster.storage import Location, open_location
from schemas.errors import RequestError


def check_outside(target: Location, labels: Labels) -> None:
    """Raises RequestError: the target lies in the labels' folder, where only labelling jobs write."""
    if f"{target.path}/".startswith(f"{labels.location.path}/") and target.fs == labels.location.fs:
        raise RequestError(f"{target} lies in {labels.location}: choose a place outside the labels")


def check_target(flag: str, address: str, overwrite: bool, labels: Labels | None = None) -> Location:
    """The location to write to, outside the labels.

    Raises:
        RequestError: it exists already, lies in the labels, or cannot be accessed.
    """
    target = open_location(address, flag)
    if labels is not None:
        check_outside(target, labels)
    try:
        if not Output(target).bucket_exists():
            raise FileNotFoundError(target.path)
        taken = target.fs.exists(target.path)
        folder = taken and target.fs.isdir(target.path)
        empty = folder and not target.fs.ls(target.path)
    except STORAGE_ERRORS as error:
        raise target.refusal(error) from error
    if taken and not empty and not overwrite:
        raise exists_already(target)
    return target


def exists_already(target: Location) -> RequestError:
    return RequestError(f"{target} exists already: choose another name, or --overwrite to replace it")


def check_file_target(flag: str, address: str, overwrite: bool, labels: Labels | None = None) -> Location:
    """The file to write to. Raises RequestError as `check_target` does, and if it is a folder."""
    target = check_target(flag, address, overwrite, labels)
    if target.fs.isdir(target.path):
        raise RequestError(f"{target} is a folder: name a file")
    return target


def note_unfinished(labels: Labels, console: Console) -> None:
    """Print a note if the labels are not complete."""
    if not labels.finished:
        rows = sum(file.metadata.num_rows for file in labels.files())
        note = f"{labels.location.url} is not finished: {rows:,} rows so far"
        console.print(note, style="yellow", soft_wrap=True)
