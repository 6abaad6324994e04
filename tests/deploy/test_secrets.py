"""No secret is in a file that is meant to be edited and shared."""

import re
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, ROOT

FILES = sorted(
    path
    for path in [ROOT / "ray_cluster.yaml", *DEPLOY.rglob("*"), *(ROOT / "examples/cluster").rglob("*")]
    if path.suffix in {"", ".yaml", ".md"} or "rights" in path.parts
)
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_\w{20}|PRIVATE KEY|secret_?(access_?)?key\b|ssh_private_key|aws_credentials|RAY_AUTH_TOKEN\b"
    r"|password",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", [path for path in FILES if path.is_file()], ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not SECRETS.findall(path.read_text())
