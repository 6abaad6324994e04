"""CLIPer from prepared images to label maps: the whole method in the order in which it happens."""

import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Integer, Shaped
from PIL import Image
from torch import Tensor
from torch.profiler import record_function

from cliper.coarse import (
    Queries,
    class_maps,
    coarse_maps,
    lost_to,
    probabilities,
    query_logits,
    sum_of_features,
    visual_evidence,
)
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
        refined: with ``skip_absent`` the classes (from 0) whose maps were sharpened. Scores of the others are the
            maxima of their coarse maps. None without.
    """

    scores: Float32[np.ndarray, " classes"]
    runs: Runs
    winners: Winners | None = None
    lost_to: Integer[np.ndarray, " classes"] | None = None
    refined: list[int] | None = None


@runtime_checkable  # for tests, which check types at every call
class Segmenter(Protocol):
    """A method that labels images.

    Attributes:
        largest_batch: most images that should go together. Who runs out of memory lowers it.
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


GATHERED_BATCHES = 8
"""With ``skip_absent`` so many batches are looked at together, to fill batches with images that may show a class."""

MAP_VALUES = 2**28
"""Logits that are computed together on a GPU: 1 GiB."""
MATRICES = 6
"""Attention matrices of each head that early-layer fusion holds at its peak (measured with ViT-B/16: 5 to 6)."""


def images_at_once(settings: MethodSettings, batch: int) -> int:
    """Images that a labelling process on a GPU should get together, if the models take them in batches."""
    return batch * (GATHERED_BATCHES if settings.skip_absent else 1)


def attention_bytes(image: Prepared, patch_size_px: int) -> int:
    """Memory of one attention matrix of an image in float32."""
    height, width, _ = image.clip.shape
    return 4 * (height // patch_size_px * (width // patch_size_px)) ** 2


ClipFeatures = tuple[list[int], Float[Tensor, "_batch 3 _input_height _input_width"], FusedFeatures]
"""For images of one patch grid their positions, normalised pixels and dense features."""
DiffusionAttention = tuple[list[int], list[LayerQueriesAndKeys]]
"""For a batch of images their positions, and the diffusion model's queries and keys."""


class Features(NamedTuple):
    """What the models see in images, whatever the vocabulary. Without a diffusion model there is no attention."""

    clip: Iterable[ClipFeatures]
    diffusion: Iterable[DiffusionAttention]


class Seen(NamedTuple):
    """What CLIP says of images, with classes in the order of ``queries``; see `Maps`."""

    attention: Groups
    coarse: Groups
    lost_to: Groups


class Maps(NamedTuple):
    """What the method computes of images before the readout, stage by stage.

    Attributes:
        attention: the replaced attention of the last feature, mean over heads, [patches, patches] of each image.
        coarse: coarse class maps on the patch grid, [classes, grid_h, grid_w].
        refined: class maps after fine-grained compensation, [classes, side_h, side_w]; the coarse maps where it is
            switched off. The map of a class that was left out is its coarse maximum everywhere.
        lost_to, chosen: see `Prediction.lost_to`, [classes], and `Prediction.refined`.
    """

    attention: Groups
    coarse: Groups
    refined: Groups
    lost_to: Groups
    chosen: list[list[int]] | None


class Cliper:
    """Training-free open-vocabulary segmentation (arXiv 2411.13836).

    Threads may share it. They start work for the models one after the other, so that none calls compiled code while
    another compiles.

    Args:
        queries: text embeddings of the vocabulary.
        diffusion: needed unless ``settings.compensation`` is ``none`` or ``guided``.
        batch: images that go through the models together. If there are fewer for the diffusion model, the last one
            fills up, so that compiled code sees one shape. None: as many as there are.

    Attributes:
        inputs: how images must be prepared.

    Raises:
        ValueError: the settings do not go with the models.
    """

    problems: Sequence[str] = ()

    def __init__(
        self,
        tower: VisionTower,
        queries: Queries,
        settings: MethodSettings,
        diffusion: DiffusionModel | None = None,
        batch: int | None = None,
    ) -> None:
        settings.check_encoder(len(tower.blocks), tower.patch_size_px)
        if not settings.needs_diffusion:
            diffusion = None
        elif diffusion is None:
            raise ValueError(f"compensation={settings.compensation!r} needs a diffusion model")
        else:
            check_head(diffusion.unet, settings)
        check_width(tower, queries.rows)
        self.tower, self.queries, self.settings = tower, queries.to(tower.device), settings
        self.order = queries.class_order.cpu()  # asking the GPU would be a wait
        self.is_in_order = torch.equal(self.order, torch.arange(queries.classes))
        self.diffusion = diffusion
        side_px = diffusion.side_px if diffusion else None
        self.inputs = InputSpec(settings.shorter_side_px, tower.patch_size_px, diffusion_side_px=side_px)
        self.batch, self.lock = batch, threading.Lock()
        self.largest_batch = images_at_once(settings, batch) if batch else batch_limit(tower.device)

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
        with self.lock:
            maps = self.maps(prepared, allowed=allowed)
        return self.read_out(maps, prepared, allowed, keep_winners)

    def warm_up(self, image_hw: tuple[int, int] = (480, 640)) -> None:
        """Label a batch of blank images, so that everything is compiled before the first real one."""
        count = self.batch or 1
        blank = self.inputs.prepare(Image.new("RGB", image_hw[::-1]), seed=0)
        self.predict([blank] * count, allowed=[[0]] * count)

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
        chosen: Sequence[list[int] | None] = maps.chosen or [None] * len(prepared)
        parts = zip(scores.numpy(), runs, winners, lost.numpy(), chosen, strict=True)
        return [Prediction(*of_image) for of_image in parts]

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
    def maps(
        self,
        prepared: Sequence[Prepared],
        noise: Sequence[Tensor] | None = None,
        allowed: AllowedClasses | None = None,
    ) -> Maps:
        """All stages up to the class maps. With ``skip_absent``, classes that cannot be present keep their coarse maps.

        Args:
            prepared: images of any sizes.
            noise: per image the diffusion noise [channels, latent_h, latent_w], in place of the seed's.
            allowed: see `Segmenter.predict`.
        """
        seen, chosen, members = self.look(self.clip_features(prepared)), None, list(range(len(prepared)))
        if self.settings.skip_absent:
            chosen = self.possible_classes(seen.coarse, allowed or [None] * len(prepared))
            members = [index for index in members if chosen[index]]
        return self.sharpen(seen, self.diffusion_attention(prepared, members, noise), chosen, prepared)

    @torch.inference_mode()
    def features(self, prepared: Sequence[Prepared]) -> Features:
        """The stages that do not depend on the vocabulary."""
        everyone = range(len(prepared))
        return Features(list(self.clip_features(prepared)), list(self.diffusion_attention(prepared, everyone)))

    @torch.inference_mode()
    def maps_of(self, features: Features, prepared: Sequence[Prepared]) -> Maps:
        """From features to class maps."""
        return self.sharpen(self.look(features.clip), features.diffusion, None, prepared)

    def clip_features(self, prepared: Sequence[Prepared]) -> Iterator[ClipFeatures]:
        """Early-layer fusion. Images of one patch grid share a batch."""
        order = sorted(range(len(prepared)), key=lambda i: prepared[i].clip.shape)
        for _, members in groupby(order, key=lambda i: prepared[i].clip.shape):
            for group in self.batches(list(members)):
                with stage("preprocess"):
                    pixels = self.tower.normalize(channels_first([prepared[i].clip for i in group], self.tower.device))
                with stage("clip"):
                    fused = fuse(self.tower, pixels, self.settings)
                yield group, pixels, fused

    def batches(self, members: Sequence[int]) -> Iterator[list[int]]:
        """As many images at a time as the memory holds."""
        size = self.batch_now() or max(len(members), 1)
        for start in range(0, len(members), size):
            yield list(members[start : start + size])

    def batch_now(self) -> int:
        """``batch``, or less if the memory does not hold so many images; 0 without a limit."""
        return min(self.batch, self.largest_batch) if self.batch else 0

    def look(self, features: Iterable[ClipFeatures]) -> Seen:
        """From features to coarse maps."""
        members, found = [], []
        for group, pixels, fused in features:
            with stage("clip"):
                found.append((fused.attention, *self.coarse_maps(fused, pixels)))
            members.append(group)
        return Seen(*(Groups(members, of) for of in zip(*found, strict=True)))

    def possible_classes(self, coarse: Groups, allowed: AllowedClasses) -> list[list[int]]:
        """The classes that can be present in each image, in the order of ``queries``.

        Refined values are weighted means of coarse ones. So a class's score is at most the maximum of its coarse map,
        and a class whose maximum does not pass the threshold on scores is absent.
        """
        limits = torch.empty(len(self.order))
        limits[self.order] = torch.tensor(self.settings.score_thresholds(len(self.order)))
        highest = coarse.map(lambda stack: stack.flatten(2).amax(dim=2)).stacked().cpu()
        return [
            (own > limits).nonzero().flatten().tolist() if given is None else self.order[sorted(given)].tolist()
            for own, given in zip(highest, allowed, strict=True)
        ]

    def sharpen(
        self,
        seen: Seen,
        diffusion: Iterable[DiffusionAttention],
        chosen: Sequence[list[int]] | None,
        prepared: Sequence[Prepared],
    ) -> Maps:
        """Fine-grained compensation, of the chosen classes or of all; then everything in the vocabulary's order."""
        refined, members, stacks = seen.coarse, [], []
        places = None if chosen is None else self.padded(chosen)
        for batch, layers in diffusion:
            with stage("compensation"):
                stacks.append(self.compensate(self.needed(seen.coarse, batch, places), layers))
            members.append(batch)
        with stage("compensation"):
            if places is not None:
                sharp = dict(zip(chain(*members), chain(*stacks), strict=True))
                refined = self.filled_up(seen.coarse, sharp, places)
            elif stacks:
                refined = Groups(members, stacks)
            elif self.settings.compensation == "guided":
                guides = (channels_first([image.clip], self.tower.device) for image in prepared)
                refined = Groups.apart(
                    [guided(single, guide) for single, guide in zip(seen.coarse, guides, strict=True)]
                )
        numbers = None
        if chosen is not None:
            numbers = [self.order.argsort()[of].sort().values.tolist() for of in chosen]
        coarse = seen.coarse.map(self.in_order)
        refined = coarse if refined is seen.coarse else refined.map(self.in_order)
        return Maps(seen.attention, coarse, refined, seen.lost_to.map(self.in_order), numbers)

    def padded(self, chosen: Sequence[list[int]]) -> Int[Tensor, "images most"]:
        """The chosen classes on the device; where others have more, the last one again, and 0 where there is none."""
        most = max(map(len, chosen))
        rows = [(of or [0]) + (of or [0])[-1:] * (most - max(len(of), 1)) for of in chosen]
        return upload(torch.tensor(rows), self.tower.device)

    def needed(self, coarse: Groups, batch: Sequence[int], places: Int[Tensor, "images most"] | None) -> Groups:
        """The maps of a batch that are compensated: from kernels, which treat each class by itself, those of the chosen
        classes. Else all, because products of other sizes round differently and could move a label.
        """
        if places is not None and self.tower.kernels:
            return Groups.apart([coarse[i].index_select(0, places[i]) for i in batch])
        return coarse if len(batch) == len(coarse.images) else Groups.apart([coarse[i] for i in batch])

    def compensate(
        self, coarse: Groups, layers: Sequence[LayerQueriesAndKeys]
    ) -> Float[Tensor, "images classes side side"]:
        """`refine` for a batch. Without kernels image after image, so that only one's attention is in memory."""
        if self.tower.kernels and self.settings.compensation == "product":
            return refine_together(coarse, layers, self.settings)
        of_images = ([(query[i], key[i]) for query, key in layers] for i in range(len(coarse.images)))
        return torch.stack([refine(single, of, self.settings) for single, of in zip(coarse, of_images, strict=True)])

    def filled_up(
        self,
        coarse: Groups,
        sharp: Mapping[int, Float[Tensor, "_classes side side"]],
        places: Int[Tensor, "images most"],
    ) -> Groups:
        """Refined maps of all classes: of those not chosen the coarse maximum everywhere, which is their score then.

        Args:
            sharp: from `compensate`, for the images with chosen classes.
            places: from `padded`.
        """
        found = []
        for index, maps in enumerate(coarse):
            filled = maps.flatten(1).amax(dim=1)[:, None, None]
            if index in sharp:
                own = sharp[index] if self.tower.kernels else sharp[index].index_select(0, places[index])
                filled = filled.repeat(1, *own.shape[1:]).index_copy_(0, places[index], own)
            found.append(filled)
        return Groups.apart(found)

    def in_order(self, stack: Shaped[Tensor, "images classes *rest"]) -> Shaped[Tensor, "images classes *rest"]:
        """Classes in the vocabulary's order; a contiguous tensor."""
        return stack.contiguous() if self.is_in_order else stack.index_select(1, self.queries.class_order)

    def diffusion_attention(
        self, prepared: Sequence[Prepared], members: Sequence[int], noise: Sequence[Tensor] | None = None
    ) -> Iterator[DiffusionAttention]:
        """The diffusion model's queries and keys for some of the images; nothing without such a model."""
        model, device = self.diffusion, self.tower.device
        if model is None:
            return
        for batch in self.batches(members):
            filled = batch + batch[-1:] * (self.batch_now() - len(batch))
            with stage("preprocess"):
                images = [image for image in (prepared[i].affinity for i in filled) if image is not None]
                pixels = channels_first(images, device)
                noises = [noise[i] if noise else model.noise(prepared[i].seed) for i in filled]
                on_device = upload(torch.stack(noises), device)
            with stage("vae"):
                latents = model.encoder(pixels)
            with stage("unet"):
                layers = model.queries_and_keys(latents, on_device)
            yield batch, [(query[: len(batch)], key[: len(batch)]) for query, key in layers]

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
        evidence = visual_evidence(dense, self.queries)
        for some in dense.split(together):
            logits = query_logits(some.flatten(0, 1), self.queries, self.settings.logit_scale)
            if evidence is not None:
                logits += evidence.repeat(len(some), 1, 1)
            maps, background = (of.unflatten(0, (-1, batch)) for of in probabilities(logits, self.queries))
            yield maps, background


def stage(name: str) -> record_function:
    """Names a stretch of work for torch's profiler, from which the benchmark reads how long it took."""
    return record_function(f"cliper/{name}")
