"""The paper's ablations as settings: by table and by row, what to change about the method."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from cliper.settings import Attention

Grid = Literal["table5", "table6", "table7"]
Changes = dict[str, Any]
"""Settings by name."""

NEED_DIFFUSION: frozenset[Grid] = frozenset({"table5", "table7"})
LAST_FEATURE = {"early_embeddings": False, "select_layer": -1}
"""The last layer's embeddings alone. The official release has ``select_layer`` -2 for ViT-L/14 here too: it spreads the
feature before the last one with the attention of the last one, which it has not filled then."""
LAST_BLOCK = LAST_FEATURE | {"attention": "value-value"}
COMPONENTS: dict[str, Changes] = {
    "last block alone, value-value attention": LAST_BLOCK | {"compensation": "none"},
    "value-value attention and compensation": LAST_BLOCK,
    "early-layer fusion": {"compensation": "none"},
    "early-layer fusion and compensation": {},
}
"""Table 5: what each part of the method brings."""
ATTENTIONS: dict[str, Changes] = {
    f"{attention}, {'all features' if early else 'last feature only'}": {"attention": attention, "compensation": "none"}
    | ({} if early else LAST_FEATURE)
    for attention in get_args(Attention)
    for early in (False, True)
}
"""Table 6: what stands in for the last block's attention, without compensation."""
COMPENSATIONS: dict[str, Changes] = {
    "none": {"compensation": "none"},
    "best single head": {"compensation": "head"},
    "mean over heads": {"compensation": "mean"},
    "product over heads": {"compensation": "product"},
}
"""Table 7: how the heads of the diffusion model's attention are combined. "Single" is the best of all heads."""
GRIDS: Mapping[Grid, dict[str, Changes]] = {"table5": COMPONENTS, "table6": ATTENTIONS, "table7": COMPENSATIONS}
