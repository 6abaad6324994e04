"""The one error that a user's request ends with."""


class RequestError(ValueError):
    """A request that cannot be carried out: the message is one sentence that says what, where and what to do."""
