"""Every node of a cluster downloads the diffusion model once, however many actors it has."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cliper.models import DIFFUSION_PARTS
from tests.support.corpora import sample_images, write_tars
from tests.support.jobs import ROOT, OutputReader, annotate, tiny_flags
from tests.support.model_hub import Hub, model_hub
from tests.support.patience import PATIENCE_S
from tests.support.ray_processes import Head, ray_head, ray_worker
from tests.support.tiny import write_tiny_diffusion

pytestmark = pytest.mark.long
IMAGES, PER_SHARD = 48, 4
ACTORS = 4
HEAD, WORKER = ("--num-cpus=0", "--num-gpus=0"), ("--num-cpus=8", "--num-gpus=0")
MODEL = "someone/diffusion"


def write_model(folder: Path) -> Path:
    """The tiny diffusion model with a text encoder, as models of the hub have one."""
    write_tiny_diffusion(folder)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    merges.write_text("#version: 0.2\n")
    CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77).save_pretrained(folder / "tokenizer")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPTextModel(
        CLIPTextConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes)
    ).save_pretrained(folder / "text_encoder")
    return folder


@dataclass(frozen=True)
class Setting:
    """What a test needs.

    Attributes:
        hub: serves the model; what the driver's machine downloaded is not counted any more.
        folder: the test's.
        needed: files that a node downloads.
        flags: of a job with four actors.
        driver: environment of the job, which has the model already and does not see the hub.
    """

    hub: Hub
    folder: Path
    needed: set[str]
    flags: list[str]
    driver: dict[str, str]

    def home(self, name: str) -> dict[str, str]:
        """Environment of a node that sees the hub and downloads to a folder of its own."""
        return self.hub.environment | {"HF_HOME": str(self.folder / name)}


@pytest.fixture
def setting(tmp_path: Path, tiny_clip: Path) -> Iterator[Setting]:
    model = write_model(tmp_path / "hub" / MODEL)
    files = [path.relative_to(model) for part in DIFFUSION_PARTS for path in (model / part).iterdir()]
    home = {"HF_HOME": str(tmp_path / "driver")}
    write_tars(tmp_path / "in", sample_images(IMAGES), PER_SHARD)
    flags = [*tiny_flags(tmp_path, tiny_clip, MODEL), "--actors", str(ACTORS), "--batch-size", "1"]
    with model_hub(tmp_path / "hub") as hub:
        run("-m", "cliper.fetch", "", MODEL, env=hub.environment | home)
        hub.downloads.clear()
        yield Setting(hub, tmp_path, {f"{MODEL}/{file}" for file in files}, flags, home | {"HF_HUB_OFFLINE": "1"})


def run(*arguments: str, env: dict[str, str]) -> str:
    """What a Python process prints."""
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def label(setting: Setting, head: Head) -> None:
    """Run the job; every image is labelled."""
    output = str(setting.folder / "out")
    address = ["--address", head.address]
    job = annotate(str(setting.folder / "in"), output, *setting.flags, *address, env=setting.driver | head.env)
    assert job.returncode == 0, job.stderr
    assert f"Labelling actors: {ACTORS} on the CPU" in job.stdout
    assert [row["status"] for row in OutputReader(output, {}).rows().values()] == ["ok"] * IMAGES


def test_four_actors_of_a_node_download_once(setting: Setting) -> None:
    with ray_head(*HEAD, env=setting.home("driver")) as head, ray_worker(head, *WORKER, env=setting.home("worker")):
        label(setting, head)
    assert setting.hub.downloads == dict.fromkeys(setting.needed, 1)


def test_after_a_look_at_the_nodes_the_job_downloads_nothing(setting: Setting, tiny_clip: Path) -> None:
    with (
        ray_head(*HEAD, env=setting.home("driver")) as head,
        ray_worker(head, *WORKER, env=setting.home("first")),
        ray_worker(head, *WORKER, env=setting.home("second")),
    ):
        models = ["--clip", f"local-dir:{tiny_clip}", "--diffusion", MODEL]
        seen = run("jobs/preflight.py", *models, "--address", head.address, env=setting.driver | head.env)
        assert "All 3 nodes are ready." in seen
        assert setting.hub.downloads == dict.fromkeys(setting.needed, 2)
        for name in ("first", "second"):
            assert len(list((setting.folder / name).rglob("snapshots/*/*/*.safetensors"))) == 2
        setting.hub.downloads.clear()
        label(setting, head)
        assert not setting.hub.downloads
