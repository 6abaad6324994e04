"""The wheel: what is in it, and that it labels a folder in an environment without this folder."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

from demo.world.scene import draw
from tests.support.jobs import OutputReader

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
PACKAGES = {"cliper", "cluster", "jobs", "schemas"}
DATA = [
    "cliper/published.json", "cliper/protocols.json", "cliper/demo_model/clip/open_clip_config.json",
    "jobs/common/speeds.csv", "jobs/page/templates/report.html.j2", "schemas/data/world.txt",
]  # fmt: skip


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because building leaves files behind."""
    if not UV.is_file():
        pytest.skip("uv is not there: `make setup` installs it")
    source = tmp_path_factory.mktemp("wheel") / "source"
    files = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = ["build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    run(UV, *build, "--out-dir", source / "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_it_holds_the_packages_and_their_data_alone(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert not set(DATA) - set(names)
    assert any(name.startswith("cliper/demo_model/") and name.endswith(".safetensors") for name in names)
    assert not [name for name in names if "__pycache__" in name]


@pytest.mark.long
def test_it_labels_a_folder_with_one_command(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment; the packages from the wheel."""
    environment, images = tmp_path / "environment", tmp_path / "images"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(UV, "pip", "install", "--quiet", "--no-deps", "--python", environment / "bin/python", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    images.mkdir()
    for seed in range(3):
        Image.fromarray(draw(seed, 96, 128).image).save(images / f"{seed}.jpg")
    (tmp_path / "vocab.txt").write_text("meadow\nriver\nsky\n")
    where = run(environment / "bin/python", "-c", "import jobs; print(jobs.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment))
    flags = ["--vocab", "vocab.txt", "--input", "images", "--output", "labels", "--clip", "demo", "--diffusion", "demo"]
    run(environment / "bin/cliper", "annotate", *flags, cwd=tmp_path)
    assert len(OutputReader(str(tmp_path / "labels"), {}).rows()) == 3
