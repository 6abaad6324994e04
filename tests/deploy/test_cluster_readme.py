"""`examples/cluster/README.md`: its commands are shell, and name files that exist."""

import re
import subprocess

import pytest

from tests.deploy.files import ROOT

CLUSTER = ROOT / "examples/cluster"
BLOCKS = re.findall(r"^```\n(.*?)^```$", (CLUSTER / "README.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0][:30])
def test_commands_are_shell(block: str) -> None:
    subprocess.run(["bash", "-n", "-c", block], check=True)


def test_every_file_is_used_and_every_used_file_exists() -> None:
    commands = "\n".join(BLOCKS).replace("$rights", "examples/cluster/rights")
    named = set(re.findall(r"\b(examples/cluster/\S+\.\w+|ray_cluster\.yaml)\b", commands))
    assert [name for name in named if not (ROOT / name).is_file()] == []
    files = {str(path.relative_to(ROOT)) for path in CLUSTER.rglob("*") if path.suffix in (".json", ".yaml")}
    assert named == files | {"ray_cluster.yaml"}
