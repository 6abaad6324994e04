"""Everything that occurs in the drawn world, and the colours of things."""

STUFF = ("sky", "mountain", "sea", "grass", "sand", "snow", "road", "brick wall")
THINGS = (
    "sun", "moon", "cloud", "tree", "house", "car", "boat", "fish", "flower", "balloon", "umbrella", "fence", "tent",
    "cactus", "snowman",
)  # fmt: skip
NAMES = STUFF + THINGS
CATEGORY = {name: index for index, name in enumerate(NAMES, start=1)}
"""A name's value in masks, from 1."""

PAINTS = {
    "red": (0.85, 0.13, 0.12),
    "blue": (0.13, 0.30, 0.85),
    "yellow": (0.97, 0.82, 0.12),
    "purple": (0.55, 0.20, 0.70),
    "orange": (0.96, 0.50, 0.10),
    "pink": (0.96, 0.50, 0.70),
    "white": (0.95, 0.94, 0.92),
}
PAINTED = frozenset({"house", "car", "boat", "fish", "flower", "balloon", "umbrella", "tent"})
"""Things whose colour varies. Captions name the colour."""
