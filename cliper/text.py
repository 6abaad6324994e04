"""Text embeddings of the queries, with prompt templates."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PROMPTS_PER_BATCH = 256


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
