"""Many histories: ``python -m tests.simulation --histories 20000 --first-seed 1``.

A failing one is shrunk and printed. The same seed finds it again.
"""

import random

import tyro
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import Histories


def main(histories: int = 20_000, first_seed: int | None = None) -> None:
    """Run histories until one fails.

    Args:
        histories: how many.
        first_seed: what they are drawn from; random if left out.
    """
    chosen = random.randrange(2**32) if first_seed is None else first_seed
    print(f"{histories:,} histories, --first-seed {chosen}", flush=True)
    many = settings(
        max_examples=histories, stateful_step_count=12, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(seed(chosen)(Histories), settings=many)  # type: ignore[no-untyped-call]
    print("0 lost, 0 doubled")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
