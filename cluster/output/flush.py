"""When rows become a file. Tasks that write import this module. It imports no models: those take ten seconds and a
gigabyte."""

import time


class RowsOrSeconds(int):
    """A number of rows that also counts as reached after some seconds.

    Ray Data gathers rows for a file until ``rows >= min_rows_per_file``, which Python asks the right-hand side of,
    because its type is a subclass of the other's. The time runs from the first rows of a file.

    Args:
        rows: rows of a file.
        seconds: after which fewer do.
    """

    def __new__(cls, rows: int, seconds: float) -> "RowsOrSeconds":
        made = super().__new__(cls, rows)
        made.seconds, made.since = seconds, None
        return made

    seconds: float
    since: float | None

    def __getnewargs__(self) -> tuple[int, float]:  # type: ignore[override]
        return int(self), self.seconds

    def __le__(self, rows: int) -> bool:
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if not super().__le__(rows) and now - self.since < self.seconds:
            return False
        self.since = None
        return True
