"""Names of stretches of work."""

from torch.profiler import record_function


def stage(name: str) -> record_function:
    """Names a stretch of work for torch's profiler, from which the benchmark reads how long it took."""
    return record_function(f"cliper/{name}")
