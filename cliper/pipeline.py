"""CLIPer from prepared images to label maps: the whole method in the order in which it happens."""

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer, Shaped
from torch import Tensor
from torch.profiler import record_function

from cliper.coarse import Queries, class_maps, coarse_maps, lost_to, probabilities, query_logits, sum_of_features
from cliper.compensation import guided, refine, refine_together
from cliper.diffusion import DiffusionModel, LayerQueriesAndKeys, check_head
from cliper.fusion import FusedFeatures, fuse
from cliper.groups import Groups
from cliper.labels import (
    Competitors,
    class_scores,
    find_competitors,
    label_map,
    label_together,
    send,
    winning_classes,
)
from cliper.preprocess import InputSpec, Prepared
from cliper.runs import Runs, find_runs, runs_from
from cliper.settings import MethodSettings
from cliper.sliding import windowed_logits
from cliper.transfer import channels_first, upload
from cliper.vision import VisionTower, check_width

AllowedClasses = Sequence[Collection[int] | None]
"""Per image the classes (from 0) that may win, or None for all."""


class Winners(NamedTuple):
    """Who wins each pixel before a threshold on the value makes it background.

    Attributes:
        value: the winner's value.
        labels: c + 1 for class c; 0 where no class has a value above 0.
    """

    value: Float32[np.ndarray, "height width"]
    labels: Integer[np.ndarray, "height width"]


@dataclass(frozen=True)
class Prediction:
    """What a method finds in one image, on the CPU.

    Attributes:
        scores: max-pooled image-level class scores, at least 0.
        runs: the label map at the image's own size.
        winners: None unless asked for.
        lost_to: the background word (from 0) that is more probable than a class where the class's map is highest, -1 if
            none is; None if the method does not say.
    """

    scores: Float32[np.ndarray, " classes"]
    runs: Runs
    winners: Winners | None = None
    lost_to: Integer[np.ndarray, " classes"] | None = None


class Segmenter(Protocol):
    """A method that labels images.

    Attributes:
        largest_batch: most images that should go together.
        problems: what failed when the models were loaded, and is done in another way.
    """

    largest_batch: int
    problems: Sequence[str]

    def memory_bytes(self, image: Prepared) -> int:
        """Memory that labelling an image takes beside the models, about; the largest parts of it."""

    def predict(
        self, prepared: Sequence[Prepared], allowed: AllowedClasses | None = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """Label images of any sizes; each result depends on its own image and seed alone.

        Args:
            allowed: None allows all classes everywhere.
            keep_winners: also return who wins each pixel.
        """


def batch_limit(device: torch.device) -> int:
    """Most images that should go together. On a CPU each goes alone: batches bring no speed there, and sums in another
    order would make an image's labels depend on its neighbours (up to 12 label pixels per image in a trial)."""
    return sys.maxsize if device.type == "cuda" else 1


MAP_VALUES = 2**28
"""Logits that are computed together on a GPU: 1 GiB."""
MATRICES = 6
"""Attention matrices of each head that early-layer fusion holds at its peak (measured with ViT-B/16: 5 to 6)."""


def attention_bytes(image: Prepared, patch_size_px: int) -> int:
    """Memory of one attention matrix of an image in float32."""
    height, width, _ = image.clip.shape
    return 4 * (height // patch_size_px * (width // patch_size_px)) ** 2


class Features(NamedTuple):
    """What the models see in images, whatever the vocabulary.

    Attributes:
        groups: for images of one patch grid their positions in the batch, normalised pixels and dense features.
        layers: the diffusion model's queries and keys for all images; None without.
    """

    groups: list[tuple[list[int], Float[Tensor, "_batch 3 _input_height _input_width"], FusedFeatures]]
    layers: list[LayerQueriesAndKeys] | None


class Maps(NamedTuple):
    """What the method computes of images before the readout, stage by stage.

    Attributes:
        attention: the replaced attention of the last feature, mean over heads, [patches, patches] of each image.
        coarse: coarse class maps on the patch grid, [classes, grid_h, grid_w].
        refined: class maps after fine-grained compensation, [classes, side_h, side_w]; the coarse maps where it is
            switched off.
        lost_to: see `Prediction`; [classes].
    """

    attention: Groups
    coarse: Groups
    refined: Groups
    lost_to: Groups


class Cliper:
    """Training-free open-vocabulary segmentation (arXiv 2411.13836).

    Args:
        queries: text embeddings of the vocabulary.
        diffusion: needed unless ``settings.compensation`` is ``none`` or ``guided``.

    Attributes:
        inputs: how images must be prepared.

    Raises:
        ValueError: the settings do not go with the models.
    """

    problems: Sequence[str] = ()

    def __init__(
        self, tower: VisionTower, queries: Queries, settings: MethodSettings, diffusion: DiffusionModel | None = None
    ) -> None:
        settings.check_encoder(len(tower.blocks), tower.patch_size_px)
        if not needs_diffusion(settings):
            diffusion = None
        elif diffusion is None:
            raise ValueError(f"compensation={settings.compensation!r} needs a diffusion model")
        else:
            check_head(diffusion.unet, settings)
        check_width(tower, queries.rows)
        self.tower, self.queries, self.settings = tower, queries.to(tower.device), settings
        self.is_in_order = torch.equal(queries.class_order, torch.arange(queries.classes))
        self.diffusion = diffusion
        side_px = diffusion.side_px if diffusion else None
        self.inputs = InputSpec(settings.shorter_side_px, tower.patch_size_px, diffusion_side_px=side_px)
        self.largest_batch = batch_limit(tower.device)

    def memory_bytes(self, image: Prepared) -> int:
        """See `Segmenter.memory_bytes`: attention of all heads, or of sliding windows as one matrix."""
        heads = self.tower.blocks[-1].attn.num_heads
        matrices = MATRICES * (1 if self.settings.sliding_crop_px else heads)
        return matrices * attention_bytes(image, self.tower.patch_size_px)

    @torch.inference_mode()
    def predict(
        self, prepared: Sequence[Prepared], allowed: AllowedClasses | None = None, keep_winners: bool = False
    ) -> list[Prediction]:
        """See `Segmenter.predict`."""
        return self.read_out(self.maps(prepared), prepared, allowed, keep_winners)

    @torch.inference_mode()
    def read_out(
        self,
        maps: Maps,
        prepared: Sequence[Prepared],
        allowed: AllowedClasses | None = None,
        keep_winners: bool = False,
    ) -> list[Prediction]:
        """From class maps to scores and label maps; other arguments as for `Segmenter.predict`."""
        allowed = allowed or [None] * len(prepared)
        with stage("labels"):
            # The guided filter moves outlines. Its maxima say less of small objects than those of the coarse maps.
            pooled = maps.coarse if self.settings.compensation == "guided" else maps.refined
            scores, lost = self.scores_on_host(class_scores(maps.coarse, pooled), maps.lost_to.stacked())
            sizes = [image.image_hw for image in prepared]
            competitors = find_competitors(scores, self.settings, allowed)
            if self.tower.kernels:
                labels, first = label_together(maps.refined, competitors, sizes, self.settings)
                runs = runs_from(first, labels, sizes)
            else:
                found = zip(maps.refined, send(competitors, self.tower.device), sizes, strict=True)
                runs = find_runs([label_map(*of, self.settings) for of in found])
            winners: list[Winners | None] = [None] * len(prepared)
            if keep_winners:
                competitors = find_competitors(scores, self.settings, allowed, with_floors=False)
                found = zip(maps.refined, send(competitors, self.tower.device), sizes, strict=True)
                winners = [self.winners(*of) for of in found]
        return [Prediction(*parts) for parts in zip(scores.numpy(), runs, winners, lost.numpy(), strict=True)]

    @staticmethod
    def scores_on_host(
        scores: Float32[Tensor, "images classes"], lost: Integer[Tensor, "images classes"]
    ) -> tuple[Float32[Tensor, "images classes"], Integer[Tensor, "images classes"]]:
        """Scores and what classes lost to, on the CPU after one transfer."""
        if not scores.is_cuda:
            return scores, lost
        both = torch.stack([scores, lost.float()]).cpu()
        return both[0], both[1].long()

    def winners(
        self, refined: Float[Tensor, "classes side_h side_w"], competitors: Competitors, image_hw: tuple[int, int]
    ) -> Winners:
        """Who wins each pixel of an image, from its class maps and competitors without floors."""
        blocks = winning_classes(refined, competitors, image_hw, self.settings)
        _, values, labels = zip(*blocks, strict=True)
        return Winners(torch.cat(values).cpu().numpy(), torch.cat(labels).cpu().numpy())

    @torch.inference_mode()
    def maps(self, prepared: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Maps:
        """All stages up to the class maps; arguments as for `features`."""
        return self.maps_of(self.features(prepared, noise), prepared)

    @torch.inference_mode()
    def features(self, prepared: Sequence[Prepared], noise: Sequence[Tensor] | None = None) -> Features:
        """The stages that do not depend on the vocabulary. Images of one patch grid share a batch.

        Args:
            prepared: images of any sizes.
            noise: per image the diffusion noise [channels, latent_h, latent_w], in place of the seed's.
        """
        layers = self.diffusion_attention(prepared, noise)
        groups = []
        order = sorted(range(len(prepared)), key=lambda i: prepared[i].clip.shape)
        for _, members in groupby(order, key=lambda i: prepared[i].clip.shape):
            group = list(members)
            with stage("preprocess"):
                pixels = self.tower.normalize(channels_first([prepared[i].clip for i in group], self.tower.device))
            with stage("clip"):
                groups.append((group, pixels, fuse(self.tower, pixels, self.settings)))
        return Features(groups, layers)

    @torch.inference_mode()
    def maps_of(self, features: Features, prepared: Sequence[Prepared]) -> Maps:
        """From features to class maps, in the vocabulary's order."""
        members = [group for group, _, _ in features.groups]
        with stage("clip"):
            stacks = [self.coarse_maps(fused, pixels) for _, pixels, fused in features.groups]
        coarse, lost = (Groups(members, of) for of in zip(*stacks, strict=True))
        refined, layers = coarse, features.layers
        with stage("compensation"):  # without kernels image after image, so that only one's attention is in memory
            if layers is not None and self.tower.kernels and self.settings.compensation == "product":
                refined = Groups.together(refine_together(coarse, layers, self.settings))
            elif layers is not None:
                of_images = [[(query[i], key[i]) for query, key in layers] for i in range(len(prepared))]
                refined = Groups.apart(
                    [refine(single, of, self.settings) for single, of in zip(coarse, of_images, strict=True)]
                )
            elif self.settings.compensation == "guided":
                guides = (channels_first([image.clip], self.tower.device) for image in prepared)
                refined = Groups.apart([guided(single, guide) for single, guide in zip(coarse, guides, strict=True)])
        attention = Groups(members, [fused.attention for _, _, fused in features.groups])
        in_order = coarse.map(self.in_order)
        return Maps(
            attention, in_order, in_order if refined is coarse else refined.map(self.in_order), lost.map(self.in_order)
        )

    def in_order(self, stack: Shaped[Tensor, "images classes *rest"]) -> Shaped[Tensor, "images classes *rest"]:
        """Classes in the vocabulary's order; a contiguous tensor."""
        return stack.contiguous() if self.is_in_order else stack.index_select(1, self.queries.class_order)

    def diffusion_attention(
        self, prepared: Sequence[Prepared], noise: Sequence[Tensor] | None = None
    ) -> list[LayerQueriesAndKeys] | None:
        """The diffusion model's queries and keys for all images; None where compensation is switched off."""
        model = self.diffusion
        if model is None:
            return None
        with stage("preprocess"):
            images = [image.affinity for image in prepared if image.affinity is not None]
            pixels = channels_first(images, self.tower.device) / 127.5 - 1
            noise = noise or [model.noise(image.seed) for image in prepared]
        with stage("vae"):
            latents = model.latents(pixels)
        with stage("unet"):
            return model.queries_and_keys(latents, upload(torch.stack(list(noise)), self.tower.device))

    def coarse_maps(
        self, fused: FusedFeatures, pixels: Float[Tensor, "batch 3 input_height input_width"]
    ) -> tuple[Float[Tensor, "batch classes grid_h grid_w"], Int[Tensor, "batch classes"]]:
        """From dense features to coarse maps and what classes lose to, in the order of ``queries``."""
        settings, queries = self.settings, self.queries
        maps, background = zip(*self.class_probabilities(fused.dense), strict=True)
        if settings.sliding_crop_px:
            windowed = [windowed_logits(self.tower, single, queries, settings) for single in pixels]
            stacked = (class_maps(torch.stack(of), queries) for of in zip(*windowed, strict=True))
            features = (single for block in maps for single in block)
            maps = tuple((whole + closer)[None] / 2 for whole, closer in zip(features, stacked, strict=True))
        coarse = coarse_maps(
            maps, fused.attention, fused.selected, settings.attention_threshold, settings.early_embeddings
        )
        lost = lost_to(coarse, sum_of_features(maps), sum_of_features(background), queries)
        patch_size_px = self.tower.patch_size_px
        return coarse.unflatten(-1, (pixels.shape[2] // patch_size_px, pixels.shape[3] // patch_size_px)), lost

    def class_probabilities(
        self, dense: Float[Tensor, "features batch patches dimensions"]
    ) -> Iterator[
        tuple[Float[Tensor, "_features batch classes patches"], Float[Tensor, "_features batch background patches"]]
    ]:
        """Probabilities of classes and background words for every feature: block by block, on a CPU one by one."""
        features, batch, patches, _ = dense.shape
        together = 1
        if dense.is_cuda:
            together = max(1, min(features, MAP_VALUES // (batch * patches * len(self.queries.rows))))
        for some in dense.split(together):
            logits = query_logits(some.flatten(0, 1), self.queries, self.settings.logit_scale)
            maps, background = (of.unflatten(0, (-1, batch)) for of in probabilities(logits, self.queries))
            yield maps, background


def needs_diffusion(settings: MethodSettings) -> bool:
    """True if maps are sharpened by a diffusion model."""
    return settings.compensation not in {"guided", "none"}


def stage(name: str) -> record_function:
    """Names a stretch of work for torch's profiler, from which the benchmark reads how long it took."""
    return record_function(f"cliper/{name}")
