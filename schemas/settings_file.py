"""The settings file: thresholds that were found on a labelled sample, for jobs to start from.

JSON with two objects. ``settings`` holds values for the method's settings; ``classes`` holds, by class name, a
``score_threshold``, a ``background_threshold`` or both, in place of the common ones.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

TUNABLE = {
    "shorter_side_px": int,
    "select_layer": int,
    "logit_scale": float,
    "attention_threshold": float,
    "score_threshold": float,
    "background_threshold": float,
    "normalize_maps": bool,
}
CLASS_THRESHOLDS = ("score_threshold", "background_threshold")


class TuningError(ValueError):
    """The settings file cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Tuning:
    """What a settings file says.

    Attributes:
        settings: by name, values of `TUNABLE` settings.
        classes: by class name, its own `CLASS_THRESHOLDS`.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def thresholds(self, name: str, class_names: Sequence[str], common: float) -> tuple[float, ...]:
        """Thresholds in vocabulary order, ``common`` for classes without one; empty if no class has one."""
        if not any(name in self.classes.get(class_name, {}) for class_name in class_names):
            return ()
        return tuple(self.classes.get(class_name, {}).get(name, common) for class_name in class_names)


def parse_tuning(text: str) -> Tuning:
    """Read a settings file.

    Raises:
        TuningError: no JSON, an unknown name, or a value of the wrong type.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise TuningError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or not document.keys() <= {"settings", "classes"}:
        raise TuningError("it must be an object with settings, classes or both")
    settings, classes = document.get("settings", {}), document.get("classes", {})
    if not isinstance(settings, dict) or not isinstance(classes, dict):
        raise TuningError("settings and classes must be objects")
    for name, value in settings.items():
        if name not in TUNABLE:
            raise TuningError(f"there is no setting {name!r}: choose from {', '.join(TUNABLE)}")
        if not has_type(value, TUNABLE[name]):
            raise TuningError(f"{name} must be of type {TUNABLE[name].__name__}, not {value!r}")
    for class_name, thresholds in classes.items():
        if not isinstance(thresholds, dict) or not thresholds.keys() <= set(CLASS_THRESHOLDS):
            raise TuningError(f"class {class_name!r} can have {' and '.join(CLASS_THRESHOLDS)}, nothing else")
        if not all(has_type(value, float) for value in thresholds.values()):
            raise TuningError(f"thresholds of class {class_name!r} must be numbers")
    return Tuning(settings, classes)


def has_type(value: Any, wanted: type) -> bool:
    """True for a JSON value of the type; whole numbers are floats too, and booleans are no numbers."""
    return isinstance(value, int | float if wanted is float else wanted) and isinstance(value, bool) == (wanted is bool)
