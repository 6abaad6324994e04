"""CLIPer (arXiv 2411.13836) in plain torch: tensors in, tensors out.

`Labeler` labels images in a program or a notebook. It is imported on first use, because torch takes seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cliper.labeler import Labeler
    from cliper.result import Result, to_coco

__all__ = ["Labeler", "Result", "to_coco"]

PLACES = {"Labeler": "cliper.labeler", "Result": "cliper.result", "to_coco": "cliper.result"}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(PLACES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
