"""The errors that end a job. Their messages are for the user."""


class RequestError(ValueError):
    """A request that cannot be fulfilled. The message is one sentence: the problem, its place, and what to do."""


class JobFailedError(Exception):
    """The job failed. The message is one sentence."""
