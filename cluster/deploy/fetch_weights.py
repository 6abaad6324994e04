"""Puts models' weights into HF_HOME, where the job finds them with and without a connection to the model hub."""

import sys
from fnmatch import fnmatch

from huggingface_hub import HfApi, hf_hub_download

from cliper.models import CLIP_WEIGHTS, DIFFUSION_PARTS, find_clip, find_diffusion, split_revision

DIFFUSION_FOLDERS = (*DIFFUSION_PARTS, "text_encoder", "tokenizer")
DIFFUSION_FILES = [f"{folder}/*.{kind}" for folder in DIFFUSION_FOLDERS for kind in ("json", "txt", "safetensors")]
OTHER_PRECISIONS = "*.*.safetensors"
"""Such as diffusion_pytorch_model.fp16.safetensors: the job loads the plain file and converts it."""


def main(clip: str, diffusion: str) -> None:
    """Fetch what is not empty, on this machine already (a folder, ``demo``) or ``none``."""
    if clip and (repository := find_clip(clip).repository):
        fetch(repository, split_revision(clip)[1], [CLIP_WEIGHTS])
    if diffusion not in ("", "none") and find_diffusion(diffusion).folder is None:
        fetch(*split_revision(diffusion), DIFFUSION_FILES)


def fetch(repository: str, revision: str | None, patterns: list[str]) -> None:
    """Download the matching files one by one, under the revision's own name.

    The cache then knows which commit the revision stands for. `snapshot_download` would also note which files there
    are in all, and without a connection the hub's client refuses a snapshot that it knows to be incomplete.
    """
    files = [file.rfilename for file in HfApi().model_info(repository, revision=revision).siblings or []]
    for file in files:
        if any(fnmatch(file, pattern) for pattern in patterns) and not fnmatch(file, OTHER_PRECISIONS):
            print(hf_hub_download(repository, file, revision=revision))


if __name__ == "__main__":
    main(*sys.argv[1:])
