"""Imports point one way: demo -> jobs -> cluster -> cliper and schemas.

cliper knows no Ray and no files, schemas no torch.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "schemas": {"schemas"},
    "cliper": {"cliper"},
    "cluster": {"cluster", "cliper", "schemas"},
    "jobs": {"jobs", "cluster", "cliper", "schemas"},
    "demo": {"demo", "jobs", "cluster", "cliper", "schemas"},
}
MUST_NOT_IMPORT = {
    "schemas": {"torch", "ray", "fsspec", "open_clip", "diffusers"},
    "cliper": {"ray", "fsspec", "s3fs", "pyarrow", "pycocotools"},
    "cluster": set(),
    "jobs": set(),
    "demo": set(),
}
ONLY_PLACE_FOR_TORCH_IN_CLUSTER = "actors.py"


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    for path in modules:
        imported = imports_of(path)
        assert imported & MAY_IMPORT.keys() <= MAY_IMPORT[package], path
        assert not imported & MUST_NOT_IMPORT[package], path


def test_ray_meets_torch_in_one_file() -> None:
    users = [path.name for path in (ROOT / "cluster").rglob("*.py") if "torch" in imports_of(path)]
    assert users == [ONLY_PLACE_FOR_TORCH_IN_CLUSTER]


@pytest.mark.parametrize("forbidden", ["pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"])
def test_nothing_is_unpickled(forbidden: str) -> None:
    for package in MAY_IMPORT:
        assert all(forbidden not in imports_of(path) for path in (ROOT / package).rglob("*.py"))
