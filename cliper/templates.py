"""Prompt templates: two named sets, or the user's own."""

from open_clip import OPENAI_IMAGENET_TEMPLATES

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

TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "car": CAR_TEMPLATES,
    "openai_imagenet_80": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
}
"""``car``: fifteen; ``openai_imagenet_80``: OpenAI's eighty for ImageNet."""


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
