"""CLIPer from pictures to label maps: the whole method in the order in which it happens."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor
from torch.profiler import record_function

from cliper.coarse import Queries, class_maps, coarse_maps, query_logits
from cliper.compensation import refine
from cliper.diffusion import DiffusionModel, LayerQueriesAndKeys, check_head
from cliper.fusion import fuse
from cliper.labels import class_scores, label_map
from cliper.preprocess import clip_input, diffusion_input, patch_grid_hw
from cliper.settings import MethodSettings
from cliper.sliding import windowed_logits
from cliper.vision import VisionTower, trace

ImageArray = UInt8[np.ndarray, "_height _width 3"]


@dataclass(frozen=True)
class Annotation:
    """What the method finds in one picture, stage by stage.

    Attributes:
        attention: the replaced attention of the last feature, mean over heads.
        coarse: coarse class maps on the patch grid.
        refined: class maps after fine-grained compensation; the coarse maps where it is switched off.
        scores: max-pooled image-level class scores, at least 0.
        labels: 0 is background, c + 1 is class c, at the picture's own size.
    """

    attention: Float[Tensor, "patches patches"]
    coarse: Float[Tensor, "classes grid_h grid_w"]
    refined: Float[Tensor, "classes side_h side_w"]
    scores: Float[Tensor, " classes"]
    labels: Int32[Tensor, "height width"]


class Cliper:
    """Training-free open-vocabulary segmentation (arXiv 2411.13836).

    Args:
        tower: CLIP's image tower.
        queries: text embeddings of the vocabulary.
        settings: the method's settings.
        diffusion: needed unless ``settings.compensation`` is ``none``.

    Raises:
        ValueError: the settings do not go with the models.
    """

    def __init__(
        self, tower: VisionTower, queries: Queries, settings: MethodSettings, diffusion: DiffusionModel | None = None
    ) -> None:
        settings.check_encoder(len(tower.blocks), tower.patch_size_px)
        if settings.compensation != "none":
            if diffusion is None:
                raise ValueError(f"compensation={settings.compensation!r} needs a diffusion model")
            check_head(diffusion.unet, settings)
        width = tower.model.proj.shape[1]
        if queries.rows.shape[1] != width:
            raise ValueError(f"text embeddings have {queries.rows.shape[1]} dimensions, the image tower has {width}")
        self.tower, self.queries, self.settings, self.diffusion = tower, queries.to(tower.device), settings, diffusion

    @property
    def largest_batch(self) -> int:
        """Most pictures that should go together. On a CPU each goes alone: batches bring no speed there, and sums in
        another order would make a picture's labels depend on its neighbours."""
        return sys.maxsize if self.tower.device.type == "cuda" else 1

    def grid_hw(self, image: ImageArray) -> tuple[int, int]:
        """Rows and columns of the picture's patch grid; pictures of one grid share a batch."""
        return patch_grid_hw(image.shape[:2], self.settings.shorter_side_px, self.tower.patch_size_px)

    @torch.inference_mode()
    def annotate(
        self,
        images: Sequence[ImageArray],
        seeds: Sequence[int],
        allowed: Sequence[Collection[int] | None] | None = None,
        noise: Sequence[Tensor] | None = None,
    ) -> list[Annotation]:
        """Label pictures of any sizes; each result depends on its own picture and seed alone.

        Args:
            images: RGB pictures.
            seeds: one per picture, for the diffusion noise.
            allowed: per picture the classes (from 0) that may win, or None for all.
            noise: per picture the diffusion noise [channels, latent_h, latent_w], in place of the seed's.
        """
        layers = self.diffusion_attention(images, seeds if noise is None else noise)
        attention, coarse = self.coarse(images)
        refined = coarse if layers is None else self.refine(coarse, layers)
        with stage("labels"):
            scores = torch.stack([class_scores(*maps) for maps in zip(coarse, refined, strict=True)]).cpu()
            labels = [
                label_map(single, scores[i], images[i].shape[:2], self.settings, allowed[i] if allowed else None)
                for i, single in enumerate(refined)
            ]
            labels = to_cpu(labels)
        return [Annotation(*parts) for parts in zip(attention, coarse, refined, scores, labels, strict=True)]

    def diffusion_attention(
        self, images: Sequence[ImageArray], randomness: Sequence[int | Tensor]
    ) -> list[LayerQueriesAndKeys] | None:
        """The diffusion model's queries and keys for all pictures; None where compensation is switched off.

        Args:
            images: RGB pictures.
            randomness: per picture the seed of its noise, or the noise itself.
        """
        if self.settings.compensation == "none" or self.diffusion is None:
            return None
        model = self.diffusion
        with stage("preprocess"):
            pixels = torch.stack([diffusion_input(image, model.side_px) for image in images])
            noise = torch.stack([model.noise(given) if isinstance(given, int) else given for given in randomness])
        with stage("vae"):
            latents = model.latents(upload(pixels, self.tower.device))
        with stage("unet"):
            return model.queries_and_keys(latents, upload(noise, self.tower.device))

    def refine(
        self, coarse: Sequence[Float[Tensor, "classes _grid_h _grid_w"]], layers: Sequence[LayerQueriesAndKeys]
    ) -> list[Float[Tensor, "classes side side"]]:
        """Fine-grained compensation, picture after picture, so that only one's attention is in memory."""
        with stage("compensation"):
            return [
                refine(single, [(query[i], key[i]) for query, key in layers], self.settings)
                for i, single in enumerate(coarse)
            ]

    def coarse(
        self, images: Sequence[ImageArray]
    ) -> tuple[list[Float[Tensor, "_patches _patches"]], list[Float[Tensor, "classes _grid_h _grid_w"]]]:
        """Early-layer fusion: attention and coarse maps of every picture. Pictures of one patch grid share a batch."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        order = sorted(range(len(images)), key=lambda i: self.grid_hw(images[i]))
        for grid_hw, members in groupby(order, key=lambda i: self.grid_hw(images[i])):
            group = list(members)
            maps = self.coarse_batch([images[i] for i in group], grid_hw)
            found |= dict(zip(group, zip(*maps, strict=True), strict=True))
        attention, coarse = zip(*(found[i] for i in range(len(images))), strict=True)
        return list(attention), list(coarse)

    def coarse_batch(
        self, images: Sequence[ImageArray], grid_hw: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch patches patches"], Float[Tensor, "batch classes grid_h grid_w"]]:
        """Early-layer fusion of pictures of one patch grid: attention and coarse maps."""
        settings, tower = self.settings, self.tower
        with stage("preprocess"):
            inputs = [clip_input(image, grid_hw, tower.patch_size_px, tower.mean, tower.std) for image in images]
            pixels = upload(torch.stack(inputs), tower.device)
        with stage("clip"):
            traced = trace(tower, pixels, settings.preset, keep_attention=settings.attention == "early-layer")
            fused = fuse(tower, traced, settings)
            maps = (class_maps(query_logits(z, self.queries, settings.logit_scale), self.queries) for z in fused.dense)
            if settings.sliding_crop_px:
                windowed = [windowed_logits(tower, single, self.queries, settings) for single in pixels]
                stacked = (class_maps(torch.stack(logits), self.queries) for logits in zip(*windowed, strict=True))
                maps = ((whole + seen_closer) / 2 for whole, seen_closer in zip(maps, stacked, strict=True))
            coarse = coarse_maps(
                maps, fused.attention, fused.selected, settings.attention_threshold, settings.early_embeddings
            )
        return fused.attention, coarse.unflatten(-1, grid_hw)


def stage(name: str) -> record_function:
    """Names a stretch of work for torch's profiler, from which the benchmark reads how long it took."""
    return record_function(f"cliper/{name}")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """To the GPU without waiting for it, or unchanged on a CPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_cpu(label_maps: list[Int32[Tensor, "_height _width"]]) -> list[Int32[Tensor, "_height _width"]]:
    """Label maps of any sizes in one transfer."""
    together = torch.cat([labels.flatten() for labels in label_maps]).cpu()
    return [
        flat.view(labels.shape)
        for flat, labels in zip(together.split([labels.numel() for labels in label_maps]), label_maps, strict=True)
    ]
