"""How every job ends: each error as one sentence, and an exit code."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.console import Console

from cliper.files import STORAGE_ERRORS, storage_problem
from jobs.common.command_line import parse_options
from schemas.errors import JobFailedError, RequestError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
ADVICE = re.compile(r"^\s*(To|You can|Refer|See|Consider|Set)\b|docs\.ray\.io|RAY_\w+=", re.IGNORECASE)
"""Ray ends many messages with advice for programmers, which says nothing about the cause."""
CAUSED = "\nThe above exception was the direct cause of the following exception:"
CONTINUES = "What is written stays. The same command continues from there."
Options = TypeVar("Options")


def run_job(
    kind: type[Options], job: Callable[[Options, Console], None], description: str | None,
    arguments: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Parse the arguments and run a job. Returns 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    try:
        options = parse_options(kind, arguments, description)
    except BrokenPipeError:  # --help, of which `head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would flush what is left, and complain
        return DONE
    errors = plain_console(stderr=True)
    try:
        job(options, plain_console())
    except RequestError as error:
        say(errors, str(error))
        return WRONG_REQUEST
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            # A second Ctrl-C ends what Ray does at the end, without a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        errors.print(f"interrupted. {CONTINUES}")
        return INTERRUPTED
    except Exception as error:
        from ray.exceptions import RayError  # takes seconds, for which --help should not wait

        # First, because Ray makes errors of a worker subclasses of JobFailedError too.
        if isinstance(error, (RayError, *STORAGE_ERRORS)):
            say(errors, job_problem(error))
            errors.print(CONTINUES)
            return FAILED
        if isinstance(error, JobFailedError):
            say(errors, str(error))
            return FAILED
        raise
    return DONE


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text as it is: names of classes and files may look like markup."""
    return Console(stderr=stderr, markup=False, highlight=False)


def say(errors: Console, sentence: str) -> None:
    errors.print(f"error: {sentence}", style="red", soft_wrap=True)


def job_problem(error: BaseException) -> str:
    """Why the job failed, on one line: the cause in the worker, without Ray's wrapping."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, STORAGE_ERRORS):
        return f"reading or writing failed: {storage_problem(cause)}"
    if isinstance(cause, JobFailedError):
        return str(cause)
    if type(cause).__name__ == "UserCodeException":  # Ray Data's; what it wraps is only in the text
        wrapped = str(error).split(CAUSED)[-2:][0]
        return wrapped.strip().splitlines()[-1].strip()
    lines = [line.strip() for line in str(cause).splitlines() if line.strip() and not ADVICE.search(line)]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"
