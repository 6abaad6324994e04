"""Imports point one way: benchmarks -> demo -> jobs -> cluster -> cliper -> schemas.

cliper does not know Ray, and fsspec in one module only. schemas know neither torch nor Ray. Nothing but tests needs
tests.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW_JOBS = {"cluster", "cliper", "schemas"}
MAY_IMPORT = {
    "schemas": {"schemas"},
    "cliper": {"cliper", "schemas"},
    "cluster": BELOW_JOBS,
    "jobs": {"jobs", *BELOW_JOBS},
    "demo": {"demo", "jobs", *BELOW_JOBS},
    "benchmarks": {
        "benchmarks",
        "demo",
        "jobs",
        *BELOW_JOBS,
        "tests.reference",
    },  # they measure against the transcription
    "examples": {"demo", *BELOW_JOBS},
    "tests": {"tests", "demo", "benchmarks", "jobs", *BELOW_JOBS},
}
MUST_NOT_IMPORT = {
    "schemas": {"torch", "ray", "fsspec", "open_clip", "diffusers"},
    "cliper": {"ray", "s3fs", "pyarrow", "pycocotools"},
}
PLACES_FOR_TORCH_IN_CLUSTER = ["cluster/actors.py", "cluster/batches.py"]
PLACES_FOR_FILES_IN_CLIPER = ["cliper/files.py"]
TESTS_OF_NO_FOLDER = {
    "golden", "reference", "end_to_end", "corpus", "faults", "fuzz", "gpu", "simulation", "deploy", "support",
    "readers", "clouds",
}  # fmt: skip
PRODUCT = [folder for folder in MAY_IMPORT if folder != "tests"]


def modules_in(folder: str) -> list[Path]:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules
    return modules


def imports_of(path: Path) -> set[str]:
    """Dotted names of what a module imports, wherever in it; "a.b" for ``from a import b`` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_below(name: str, packages: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    for path in modules_in(folder):
        imported = imports_of(path)
        ours = {name for name in imported if is_below(name, set(MAY_IMPORT))}
        assert {name for name in ours if not is_below(name, MAY_IMPORT[folder])} == set(), path
        assert {name for name in imported if is_below(name, MUST_NOT_IMPORT.get(folder, set()))} == set(), path


def test_every_folder_with_modules_is_checked() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/*.py")}
    assert folders - {".venv"} == set(MAY_IMPORT)


def test_tests_lie_where_the_tested_modules_lie() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in modules_in("tests")} - {Path()}
    mirrored = {folder for folder in folders if folder.parts[0] not in TESTS_OF_NO_FOLDER}
    assert [folder for folder in mirrored if not any((ROOT / folder).glob("*.py"))] == []


def users_of(package: str, folder: str) -> list[str]:
    users = [path for path in modules_in(folder) if any(is_below(name, {package}) for name in imports_of(path))]
    return sorted(str(path.relative_to(ROOT)) for path in users)


def test_ray_meets_torch_in_the_actor_only() -> None:
    assert users_of("torch", "cluster") == PLACES_FOR_TORCH_IN_CLUSTER


def test_cliper_meets_fsspec_in_one_module_only() -> None:
    assert users_of("fsspec", "cliper") == PLACES_FOR_FILES_IN_CLIPER


@pytest.mark.parametrize(
    "module", ["jobs.filter", "jobs.export", "jobs.report", "cluster.datasource", "cluster.output.flush"]
)
def test_what_only_reads_or_writes_starts_without_torch(module: str) -> None:
    """Torch and the model libraries take ten seconds and a gigabyte to import. The last two are what Ray's tasks import
    that read and write."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("folder", PRODUCT)
def test_nothing_is_unpickled(folder: str) -> None:
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for path in modules_in(folder):
        assert not [name for name in imports_of(path) if is_below(name, unsafe)], path


@pytest.mark.parametrize("folder", PRODUCT)
def test_nobody_changes_where_modules_are_looked_for(folder: str) -> None:
    for path in modules_in(folder):
        assert not re.search(r"sys\.path(\.|\[|\s*\+?=[^=])", path.read_text()), path
