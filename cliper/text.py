"""Prompt templates, and the text embeddings of queries in them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from torch.nn import functional as F

PROMPTS_PER_BATCH = 256
WORLD_WORDS = 50
"""Words that a list must have before the mean of their embeddings says what all phrases have in common."""
SAME_MEANING = 0.75
"""Cosine from which two phrases mean the same; see `same_meaning`."""
CAR_TEMPLATES = (
    "a clean origami {}.",
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
"""The fifteen templates that the official release uses for PASCAL VOC."""
IMAGENET_TEMPLATES = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
SCENE_TEMPLATES = (
    "there is a {} in the scene.",
    "there is the {} in the scene.",
    "this is a {} in the scene.",
    "this is the {} in the scene.",
    "this is one {} in the scene.",
)

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "car": CAR_TEMPLATES,
    "openai_imagenet_80": IMAGENET_TEMPLATES,
    "maskclip_85": (*IMAGENET_TEMPLATES, *SCENE_TEMPLATES),
}
"""``car``: fifteen; ``openai_imagenet_80``: OpenAI's eighty for ImageNet; ``maskclip_85``: these and five of scenes."""


def parse_templates(text: str) -> tuple[str, ...]:
    """Templates from a file's text: one per line, ``{}`` for the class; blank lines and ``#`` comments are ignored.

    Raises:
        ValueError: a line without ``{}``, or no template at all; names the line.
    """
    templates = []
    for number, line in enumerate(text.splitlines(), start=1):
        template = line.strip()
        if not template or template.startswith("#"):
            continue
        if "{}" not in template:
            raise ValueError(f"line {number} has no {{}} to put the class name into: {template!r}")
        templates.append(template)
    if not templates:
        raise ValueError("it holds no template")
    return tuple(templates)


@torch.inference_mode()
def embed_phrases(
    encode_text: Callable[[Tensor], Tensor],
    tokenize: Callable[[list[str]], Tensor],
    phrases: Sequence[str],
    templates: Sequence[str],
) -> Float[Tensor, "phrases dimensions"]:
    """Embed each phrase in every template: encodings are L2-normalised, averaged over the templates, normalised again.

    Args:
        encode_text: CLIP's text tower, tokens [prompts, context] to encodings [prompts, dimensions].
        tokenize: its tokeniser.
        phrases: what to embed, at least one.
        templates: strings in which ``{}`` stands for the phrase, at least one.
    """
    prompts = [template.replace("{}", phrase) for phrase in phrases for template in templates]
    encodings = [
        F.normalize(encode_text(tokenize(prompts[start : start + PROMPTS_PER_BATCH])).float(), dim=-1)
        for start in range(0, len(prompts), PROMPTS_PER_BATCH)
    ]
    return F.normalize(torch.cat(encodings).unflatten(0, (len(phrases), len(templates))).mean(dim=1), dim=-1)


def same_meaning(
    rows: Float[Tensor, "phrases dimensions"],
    others: Float[Tensor, "others dimensions"],
    world: Float[Tensor, "words dimensions"],
) -> Bool[Tensor, "phrases others"]:
    """Whether phrases mean the same, by their text embeddings.

    All embeddings of short phrases point in similar directions. Their mean is therefore subtracted first. With CLIP's
    ViT-B/16, the cosine of what is left is 0.75 to 0.94 for aeroplane and airplane, motorbike and motorcycle, sofa and
    couch, pottedplant and potted plant, diningtable and table, and below 0.74 for nearly all pairs that differ in
    meaning (train and railroad 0.73, bicycle and motorcycle 0.65, car and truck 0.58).

    Args:
        rows, others: L2-normalised.
        world: L2-normalised embeddings of many different words.
    """
    centre = world.mean(dim=0)
    return F.normalize(rows - centre, dim=-1) @ F.normalize(others - centre, dim=-1).T >= SAME_MEANING
