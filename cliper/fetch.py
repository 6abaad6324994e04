"""Fetching models' weights into HF_HOME before anybody waits for them.

``python -m cliper.fetch CLIP DIFFUSION [AFFINITY]``
"""

import sys
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from cliper.models import (
    CLIP_WEIGHTS,
    DIFFUSION_PARTS,
    TOKENIZER_FILES,
    ClipSpec,
    DiffusionSpec,
    explaining,
    find_clip,
    find_diffusion,
    split_revision,
)
from cliper.settings import DIFFUSION_AFFINITY, TIMM_PREFIX
from cliper.timm_models import TIMM_WEIGHTS, TimmSpec, find_timm

WEIGHTS = (CLIP_WEIGHTS, TIMM_WEIGHTS, "vae/*.safetensors", "unet/*.safetensors")
TEXT_PARTS = ("text_encoder", "tokenizer")
OTHER_PRECISIONS = "*.*.safetensors"
"""Such as diffusion_pytorch_model.fp16.safetensors: the job loads the plain file and converts it."""


def fetch(clip: ClipSpec, diffusion: DiffusionSpec | None, timm: TimmSpec | None = None) -> None:
    """Download what the annotating actors read; what is there already is left alone.

    Processes of one machine that want a file at the same time wait for the first of them (the hub's client locks it).

    Raises:
        ModelError: the hub does not answer, or the disk is full.
    """
    with explaining("weights cannot be fetched"):
        if clip.repository:
            download(clip.repository, clip.revision, [CLIP_WEIGHTS])
        if diffusion is not None and diffusion.folder is None:
            download(split_revision(diffusion.name)[0], diffusion.revision, files_of(DIFFUSION_PARTS))
        if timm is not None and timm.repository:
            download(timm.repository, timm.revision, [TIMM_WEIGHTS])


def files_of(folders: tuple[str, ...]) -> list[str]:
    return [f"{folder}/*.{kind}" for folder in folders for kind in ("json", "txt", "safetensors")]


def download(repository: str, revision: str | None, patterns: list[str]) -> None:
    """Download the matching files. If the hub does not answer, weights in the cache will do."""
    get = partial(
        snapshot_download, repository, revision=revision, allow_patterns=patterns, ignore_patterns=[OTHER_PRECISIONS]
    )
    try:
        folder = get()
    except Exception:  # which library's HTTP errors come out depends on the hub client's version
        folder = get(local_files_only=True)
    for pattern in WEIGHTS:
        if pattern in patterns and not any(Path(folder).glob(pattern)):
            raise FileNotFoundError(f"the model hub does not answer, and the cache has no {pattern} of {repository}")


def main(clip: str, diffusion: str, affinity: str = DIFFUSION_AFFINITY) -> None:
    """Fetch everything that a job reads of models given by name; empty names, folders and ``none`` are passed over.
    Another affinity needs no diffusion model.
    """
    if clip and (spec := find_clip(clip)).repository:
        tokenizer = TOKENIZER_FILES if spec.has_tokenizer else ()
        download(spec.repository, split_revision(clip)[1], [CLIP_WEIGHTS, *tokenizer])
    if affinity.startswith(TIMM_PREFIX):
        timm = find_timm(affinity.removeprefix(TIMM_PREFIX))
        if timm.repository:
            download(timm.repository, timm.revision, [TIMM_WEIGHTS])
    elif affinity == DIFFUSION_AFFINITY and diffusion not in ("", "none") and find_diffusion(diffusion).folder is None:
        download(*split_revision(diffusion), files_of((*DIFFUSION_PARTS, *TEXT_PARTS)))


if __name__ == "__main__":
    main(*sys.argv[1:])
