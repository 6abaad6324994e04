"""Shared fixtures. Shapes in the package's signatures are checked while tests run.

Fixtures import what they need themselves: tests that need neither models nor Ray start at once.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.support.shape_checker  # noqa: F401 (the hook looks it up)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.support.firefox import FirefoxPage
    from tests.support.jobs import SharedRay

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several test processes would wait for each other's cores
if "TRITON_INTERPRET" not in os.environ:  # the hook changes functions, and Triton reads their sources
    install_import_hook("cliper", "tests.support.shape_checker.check")

# A busy machine is no failure. In CI the same examples are drawn in every run, so that a red run is red again.
settings.register_profile("quiet", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("quiet")

COSTLY_FIXTURES = {"s3": "ray", "ray_here": "ray", "browser": "browser", "firefox": "firefox"}
"""Tests that use one of these run in one worker: group by fixture."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks for groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for group in {group for name, group in COSTLY_FIXTURES.items() if name in getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny import write_tiny_clip

    return write_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny import write_tiny_diffusion

    return write_tiny_diffusion(tmp_path_factory.mktemp("models") / "diffusion")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An S3 server; the variables with which a client reaches it."""
    from tests.support.s3_server import seaweed

    with seaweed(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture(scope="session")
def ray_here(s3: dict[str, str]) -> Iterator["SharedRay"]:
    """Ray in this process, with the S3 server in its environment."""
    from tests.support.jobs import shared_ray

    with shared_ray(s3) as shared:
        yield shared


@pytest.fixture(scope="module")  # a session's browser would keep its event loop running in every other test
def browser() -> Iterator["Browser"]:
    from tests.support.browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def firefox(tmp_path_factory: pytest.TempPathFactory) -> Iterator["FirefoxPage"]:
    from tests.support.firefox import firefox

    with firefox(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened
