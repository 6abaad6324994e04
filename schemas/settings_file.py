"""The settings file: settings that were found on a labelled sample.

JSON with two objects. ``settings`` holds values for settings of the method. ``classes`` holds thresholds by class name,
in place of the common ones.
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
    """

    settings: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

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
    if not isinstance(document, dict) or not document.keys() <= {"settings", "classes"}:
        raise ValueError("it must be an object with settings, classes or both")
    settings, classes = document.get("settings", {}), document.get("classes", {})
    if not isinstance(settings, dict) or not isinstance(classes, dict):
        raise ValueError("settings and classes must be objects")
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
    return SettingsFile(settings, classes)


def has_type(value: Any, wanted: type) -> bool:
    """True for a JSON value of the type. Whole numbers are floats too. Booleans are not numbers."""
    return isinstance(value, int | float if wanted is float else wanted) and isinstance(value, bool) == (wanted is bool)
