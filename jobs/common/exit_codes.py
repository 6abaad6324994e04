"""How every job ends: its errors as one sentence, and the exit codes."""

from collections.abc import Callable

from ray.exceptions import RayError
from rich.console import Console

from cluster.output.lease import LeaseLostError
from cluster.storage import STORAGE_ERRORS, storage_problem
from schemas.errors import JobFailedError, RequestError

DONE, FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
GOES_ON = "What is written stays. The same command goes on from there."


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
    except (RayError, *STORAGE_ERRORS) as error:
        say(errors, job_problem(error))
        errors.print(GOES_ON, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        errors.print(f"interrupted. {GOES_ON}", highlight=False)
        return INTERRUPTED
    return DONE


def say(errors: Console, sentence: str) -> None:
    errors.print(f"error: {sentence}", style="red", highlight=False, markup=False, soft_wrap=True)


def job_problem(error: BaseException) -> str:
    """Why the job failed, on one line: the cause in the worker rather than Ray's wrapping of it."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, STORAGE_ERRORS):
        return f"reading or writing failed: {storage_problem(cause)}"
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else 'no message'}"
