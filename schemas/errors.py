"""The errors that end a job. Their messages are for the user."""


class RequestError(ValueError):
    """A request that cannot be carried out: the message is one sentence that says what, where and what to do."""


class JobFailedError(Exception):
    """The job could not be done. The message is one sentence."""
