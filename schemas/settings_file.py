"""The settings file: settings that were found on a labelled sample.

JSON with two objects and a list. ``settings`` holds values for settings of the method. ``classes`` holds thresholds by
class name, in place of the common ones. ``tuned_on`` says which images they were found on.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file says.

    Attributes:
        settings: values by name.
        classes: by class name, its own thresholds by name.
        tuned_on: samples, each with the address of the ``masks`` and the names of the ``images``.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    tuned_on: list[dict[str, Any]] = field(default_factory=list)

    def images_seen(self, masks: str, names: Collection[str]) -> int:
        """How many of these images of a data set the file was tuned on."""
        seen = {name for sample in self.tuned_on if sample["masks"] == masks for name in sample["images"]}
        return len(seen.intersection(names))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def parse_settings_file(text: str, types: Mapping[str, Any], thresholds: Collection[str]) -> SettingsFile:
    """Read a settings file.

    Args:
        text: of the file.
        types: the settings that it may hold, by name.
        thresholds: names of those that a class may have.

    Raises:
        ValueError: the text is not JSON, or has an unknown name or a value of the wrong type. The message is one
            sentence.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict) or not document.keys() <= {"settings", "classes", "tuned_on"}:
        raise ValueError("it must be an object with settings, classes or both")
    settings, classes, samples = document.get("settings", {}), document.get("classes", {}), document.get("tuned_on", [])
    if not isinstance(settings, dict) or not isinstance(classes, dict):
        raise ValueError("settings and classes must be objects")
    if not isinstance(samples, list) or not all(map(is_sample, samples)):
        raise ValueError("tuned_on must be a list of objects with masks and images")
    for name, value in settings.items():
        if name not in types:
            raise ValueError(f"there is no setting {name!r}: choose from {', '.join(types)}")
        if not has_type(value, types[name]):
            raise ValueError(f"{name} must be of type {types[name].__name__}, not {value!r}")
    for class_name, own in classes.items():
        if not isinstance(own, dict) or not own.keys() <= set(thresholds):
            raise ValueError(f"class {class_name!r} can have {' and '.join(thresholds)}, nothing else")
        if not all(has_type(value, float) for value in own.values()):
            raise ValueError(f"thresholds of class {class_name!r} must be numbers")
    return SettingsFile(settings, classes, samples)


def is_sample(value: Any) -> bool:
    """True for an entry of ``tuned_on``."""
    if not isinstance(value, dict) or value.keys() != {"masks", "images"} or not isinstance(value["images"], list):
        return False
    return all(isinstance(name, str) for name in (value["masks"], *value["images"]))


def has_type(value: Any, wanted: type) -> bool:
    """True for a JSON value of the type. Whole numbers are floats too. Booleans are not numbers."""
    return isinstance(value, int | float if wanted is float else wanted) and isinstance(value, bool) == (wanted is bool)
