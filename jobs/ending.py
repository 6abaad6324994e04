"""How every job ends: its errors as one sentence, and the exit codes."""

from collections.abc import Callable

from rich.console import Console

from cluster.lease import LeaseLostError
from cluster.storage import STORAGE_ERRORS, storage_problem
from schemas.errors import RequestError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130


class JobFailedError(Exception):
    """The job could not be done; the message is one sentence."""


def run_to_exit_code(job: Callable[[], None], errors: Console) -> int:
    """Run a job; returns 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    try:
        job()
    except RequestError as error:
        say(errors, str(error))
        return WRONG_REQUEST
    except (JobFailedError, LeaseLostError) as error:
        say(errors, str(error))
        return FAILED
    except STORAGE_ERRORS as error:
        say(errors, f"reading or writing failed: {storage_problem(error)}")
        return FAILED
    except KeyboardInterrupt:
        errors.print("interrupted.", highlight=False)
        return INTERRUPTED
    return DONE


def say(errors: Console, sentence: str) -> None:
    errors.print(f"error: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)
