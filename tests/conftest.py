"""Shared fixtures. Shapes in the package's signatures are checked while tests run."""

from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.support.shape_checker  # noqa: F401 (the hook looks it up)

install_import_hook("cliper", "tests.support.shape_checker.check")

from tests.support.tiny import write_tiny_clip, write_tiny_diffusion  # noqa: E402 (after the hook)

settings.register_profile("no-deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no-deadline")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def tiny_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_diffusion(tmp_path_factory.mktemp("models") / "diffusion")
