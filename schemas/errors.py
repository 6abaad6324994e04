"""The errors that end a job, and the one that costs an image. Their messages are for the user."""

from schemas.rows import Status


class RequestError(ValueError):
    """A request that cannot be fulfilled. The message is one sentence: the problem, its place, and what to do."""


class JobFailedError(Exception):
    """The job failed. The message is one sentence."""


class DecodeError(ValueError):
    """An image that cannot be used; ``status`` says which kind of failure it is."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
