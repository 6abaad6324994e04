"""The paper's ablations as settings: by table and by row, what to change about the method."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from cliper.settings import Attention

Grid = Literal["table5", "table6", "table7"]
LAST_BLOCK = {"attention": "query-key", "early_embeddings": False}
COMPONENTS: dict[str, dict[str, Any]] = {
    "last block alone, query-key attention": LAST_BLOCK | {"compensation": "none"},
    "query-key attention and compensation": LAST_BLOCK,
    "early-layer fusion": {"compensation": "none"},
    "early-layer fusion and compensation": {},
}
"""Table 5: what each part of the method brings."""
COMPENSATIONS: dict[str, dict[str, Any]] = {
    "none": {"compensation": "none"},
    "one head (1)": {"compensation": "head", "head": 1},
    "mean over heads": {"compensation": "mean"},
    "product over heads": {"compensation": "product"},
}
"""Table 7: how the heads of the diffusion model's attention are combined."""
ATTENTIONS: dict[str, dict[str, Any]] = {
    f"{attention}, {'all features' if early else 'last feature only'}": {
        "attention": attention, "early_embeddings": early, "compensation": "none",
    }
    for attention in get_args(Attention)
    for early in (False, True)
}  # fmt: skip
"""Table 6: what stands in for the last block's attention, without compensation."""
GRIDS: Mapping[Grid, dict[str, dict[str, Any]]] = {
    "table5": COMPONENTS,
    "table6": ATTENTIONS,
    "table7": COMPENSATIONS,
}
