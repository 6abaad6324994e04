"""CLIPer from prepared images to label maps: the whole method in the order in which it happens."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain, groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int, Integer, Shaped
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliper.absent import class_places, filled_up, images_at_once, possible_classes
from cliper.affinity import Affinity, Attention
from cliper.coarse import Queries, class_maps, coarse_maps, lost_to, probabilities_of_features, sum_of_features
from cliper.compensation import WIDEST_IN_KERNELS, guided, refine, refine_together
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
from cliper.preprocess import InputSpec, Prepared, clip_inputs
from cliper.runs import find_runs, runs_from
from cliper.segmenter import AllowedClasses, Prediction, Winners, attention_bytes, batch_limit
from cliper.settings import MethodSettings
from cliper.sliding import windowed_logits
from cliper.stages import stage
from cliper.transfer import channels_first
from cliper.vision import VisionTower, check_width

MATRICES = 6
"""Attention matrices of each head that early-layer fusion holds at its peak (measured with ViT-B/16: 5 to 6)."""


class View(NamedTuple):
    """Images of one size as CLIP sees them: at one scale, as they are or mirrored.

    Attributes:
        pixels: normalised.
        fused: their dense features.
        mirrored: left and right are exchanged.
    """

    pixels: Float[Tensor, "batch 3 input_height input_width"]
    fused: FusedFeatures
    mirrored: bool


ClipFeatures = tuple[list[int], list[View]]
"""For images of one patch grid their positions and views, the largest first."""
ViewMaps = tuple[Float[Tensor, "batch _entries _grid_h _grid_w"], ...]
"""Of a view the coarse maps, and the probabilities of classes and of background words, both summed over features."""
BatchAttention = tuple[list[int], Attention]
"""For images whose attention has one grid their positions, and their queries and keys."""


class Features(NamedTuple):
    """What the models see in images, whatever the vocabulary. Without an affinity there is no attention."""

    clip: Iterable[ClipFeatures]
    affinity: Iterable[BatchAttention]


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
        affinity: needed unless ``settings.compensation`` is ``none`` or ``guided``.
        batch: images that go through the models together. If there are fewer for a compiled model, the last one fills
            up, so that it sees one shape. None: as many as there are.

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
        affinity: Affinity | None = None,
        batch: int | None = None,
    ) -> None:
        settings.check_encoder(len(tower.blocks), tower.patch_size_px)
        if not settings.needs_affinity:
            affinity = None
        elif affinity is None:
            raise ValueError(f"compensation={settings.compensation!r} needs a model: affinity {settings.affinity}")
        else:
            settings.check_head(affinity.heads)
        check_width(tower, queries.rows)
        self.tower, self.queries, self.settings = tower, queries.to(tower.device), settings
        self.order = queries.class_order.cpu()  # asking the GPU would be a wait
        self.is_in_order = torch.equal(self.order, torch.arange(queries.classes))
        self.affinity = affinity
        self.inputs = clip_inputs(settings, tower.patch_size_px)
        if affinity is not None:
            self.inputs = affinity.inputs(self.inputs, settings)
        self.batch, self.lock = batch, threading.Lock()
        self.largest_batch = images_at_once(settings, batch) if batch else batch_limit(tower.device)

    def memory_bytes(self, image: Prepared) -> int:
        """See `Segmenter.memory_bytes`: attention of all heads, and of affinity."""
        heads = self.tower.blocks[-1].heads
        second = self.affinity.memory_bytes(image) if self.affinity else 0
        return MATRICES * heads * attention_bytes(image.clip, self.tower.patch_size_px) + second

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
            chosen = possible_classes(seen.coarse, self.order, self.settings, allowed or [None] * len(prepared))
            members = [index for index in members if chosen[index]]
        return self.sharpen(seen, self.affinity_attention(prepared, members, noise), chosen, prepared)

    @torch.inference_mode()
    def features(self, prepared: Sequence[Prepared]) -> Features:
        """The stages that do not depend on the vocabulary."""
        everyone = range(len(prepared))
        return Features(list(self.clip_features(prepared)), list(self.affinity_attention(prepared, everyone)))

    @torch.inference_mode()
    def maps_of(self, features: Features, prepared: Sequence[Prepared]) -> Maps:
        """From features to class maps."""
        return self.sharpen(self.look(features.clip), features.affinity, None, prepared)

    def clip_features(self, prepared: Sequence[Prepared]) -> Iterator[ClipFeatures]:
        """Early-layer fusion. Images of one patch grid share a batch."""
        order = sorted(range(len(prepared)), key=lambda i: prepared[i].clip.shape)
        for _, members in groupby(order, key=lambda i: prepared[i].clip.shape):
            for group in self.batches(list(members)):
                with stage("preprocess"):
                    pixels = self.tower.normalize(channels_first([prepared[i].clip for i in group], self.tower.device))
                    sizes = list(self.at_scales(pixels))
                views = []
                with stage("clip"):
                    for size in sizes:
                        for mirrored in (False, True)[: 1 + self.settings.flip]:
                            seen = size.flip(-1) if mirrored else size
                            views.append(View(seen, fuse(self.tower, seen, self.settings), mirrored))
                yield group, views

    def at_scales(
        self, pixels: Float[Tensor, "batch 3 input_height input_width"]
    ) -> Iterator[Float[Tensor, "batch 3 _height _width"]]:
        """Normalised images, which come at the largest scale, at every scale on whole patches."""
        yield pixels
        largest_hw = (pixels.shape[2], pixels.shape[3])
        for side_px in self.settings.sides_px[1:]:
            size_hw = InputSpec(side_px, self.tower.patch_size_px).clip_hw(largest_hw)
            yield F.interpolate(pixels, size_hw, mode="bicubic", antialias=True)

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
        for group, views in features:
            with stage("clip"):
                found.append((views[0].fused.attention, *self.coarse_maps(views)))
            members.append(group)
        return Seen(*(Groups(members, of) for of in zip(*found, strict=True)))

    def sharpen(
        self,
        seen: Seen,
        affinity: Iterable[BatchAttention],
        chosen: list[list[int]] | None,
        prepared: Sequence[Prepared],
    ) -> Maps:
        """Fine-grained compensation, of the chosen classes or of all; then everything in the vocabulary's order."""
        refined, members, stacks = seen.coarse, [], []
        places = None if chosen is None else class_places(chosen, self.order, self.tower.device)
        for batch, attention in affinity:
            with stage("compensation"):
                stacks.append(self.compensate(seen.coarse, batch, attention, places))
            members.append(batch)
        with stage("compensation"):
            if places is not None:
                sharp = dict(zip(chain(*members), chain(*stacks), strict=True))
                refined = filled_up(seen.coarse, sharp, places)
            elif stacks:
                refined = Groups(members, stacks)
            elif self.settings.compensation == "guided":
                guides = (channels_first([image.clip], self.tower.device) for image in prepared)
                refined = Groups.apart(
                    [guided(single, guide) for single, guide in zip(seen.coarse, guides, strict=True)]
                )
        coarse = seen.coarse.map(self.in_order)
        refined = coarse if refined is seen.coarse else refined.map(self.in_order)
        return Maps(seen.attention, coarse, refined, seen.lost_to.map(self.in_order), chosen)

    def compensate(
        self,
        coarse: Groups,
        batch: Sequence[int],
        attention: Attention,
        places: Int[Tensor, "images most"] | None,
    ) -> Float[Tensor, "batch compensated grid_h grid_w"]:
        """`refine` for a batch, of the classes at ``places`` or of all. Without kernels image after image, so that the
        attention of only one is in memory.

        The kernel treats each class by itself, so that it gets the maps of these classes only. Otherwise classes are
        left out in the end, because products of other sizes round differently and could move a label.
        """
        layers, grid_hw = attention
        # Grids of any shape and size fit the kernels, but not any head.
        together = self.tower.kernels and layers[0][0].shape[-1] <= WIDEST_IN_KERNELS
        if places is not None and together:
            coarse = Groups.apart([coarse[i].index_select(0, places[i]) for i in batch])
        elif len(batch) < len(coarse.images):
            coarse = Groups.apart([coarse[i] for i in batch])
        if together:
            return refine_together(coarse, layers, grid_hw, self.settings)
        of_images = ([(query[i], key[i]) for query, key in layers] for i in range(len(batch)))
        found = [refine(single, of, grid_hw, self.settings) for single, of in zip(coarse, of_images, strict=True)]
        if places is not None:
            found = [maps.index_select(0, places[i]) for i, maps in zip(batch, found, strict=True)]
        return torch.stack(found)

    def in_order(self, stack: Shaped[Tensor, "images classes *rest"]) -> Shaped[Tensor, "images classes *rest"]:
        """Classes in the vocabulary's order; a contiguous tensor."""
        return stack.contiguous() if self.is_in_order else stack.index_select(1, self.queries.class_order)

    def affinity_attention(
        self, prepared: Sequence[Prepared], members: Sequence[int], noise: Sequence[Tensor] | None = None
    ) -> Iterator[BatchAttention]:
        """Queries and keys for some of the images; nothing without an affinity. Images of one size share a batch."""
        model = self.affinity
        if model is None:
            return
        order = sorted(members, key=lambda i: affinity_shape(prepared[i]))
        for _, of_shape in groupby(order, key=lambda i: affinity_shape(prepared[i])):
            for batch in self.batches(list(of_shape)):
                filled = batch + batch[-1:] * (self.batch_now() - len(batch)) * model.is_compiled
                attention = model.attention(
                    [prepared[i] for i in filled], [noise[i] for i in filled] if noise else None
                )
                layers = [(query[: len(batch)], key[: len(batch)]) for query, key in attention.layers]
                yield batch, Attention(layers, attention.grid_hw)

    def coarse_maps(
        self, views: Sequence[View]
    ) -> tuple[Float[Tensor, "batch classes grid_h grid_w"], Int[Tensor, "batch classes"]]:
        """From dense features to coarse maps and what classes lose to, in the order of ``queries``. Maps are averaged
        over the views, on the grid of the first one.
        """
        coarse, maps, background = mean_of_views([self.maps_of_view(view) for view in views])
        return coarse, lost_to(coarse.flatten(2), maps.flatten(2), background.flatten(2), self.queries)

    def maps_of_view(self, view: View) -> ViewMaps:
        """From dense features to the maps of one view, not mirrored."""
        settings, queries, (pixels, fused, mirrored) = self.settings, self.queries, view
        maps, background = zip(*probabilities_of_features(fused.dense, queries, settings.logit_scale), strict=True)
        if settings.windows == "average":
            windowed = [windowed_logits(self.tower, single, queries, settings) for single in pixels]
            stacked = (class_maps(torch.stack(of), queries) for of in zip(*windowed, strict=True))
            features = (single for block in maps for single in block)
            maps = tuple((whole + closer)[None] / 2 for whole, closer in zip(features, stacked, strict=True))
        coarse = coarse_maps(
            maps, fused.attention, fused.selected, settings.attention_threshold, settings.early_embeddings
        )
        grid_hw = tuple(side // self.tower.patch_size_px for side in pixels.shape[-2:])
        found = (coarse, sum_of_features(maps), sum_of_features(background))
        on_grid = (of.unflatten(-1, grid_hw) for of in found)
        return tuple(of.flip(-1) if mirrored else of for of in on_grid)


def mean_of_views(found: Sequence[ViewMaps]) -> ViewMaps:
    """Maps of the same images averaged over views, on the grid of the first one."""
    if len(found) == 1:
        return found[0]
    stacks = [torch.cat(of_view, dim=1) for of_view in found]  # one of the maps may have no entries
    grid_hw = stacks[0].shape[-2:]
    resized = (F.interpolate(stack, grid_hw, mode="bilinear") for stack in stacks[1:])
    return (reduce(torch.add, resized, stacks[0]) / len(stacks)).split([of.shape[1] for of in found[0]], dim=1)


def affinity_shape(image: Prepared) -> tuple[int, ...]:
    """Of what the second model reads."""
    return () if image.affinity is None else image.affinity.shape
