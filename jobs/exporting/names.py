"""File names for what is written about an image."""

import re
from urllib.parse import quote

from cluster.output.files import split_id

UNSAFE = re.compile(
    r"""[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\\:*?"<>|]  # ends a line in a list, or is special on some system
    | (?:^|(?<=/))\s | \s(?:(?=/)|$)  # lists are read without spaces at the ends""",
    re.VERBOSE,
)


class Names:
    """Names of images that come in ascending order of their ids, as UTF-8 bytes."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}
        """Names that can come again, and what ids begin with as long as they can."""

    def of(self, image_id: str) -> tuple[str, str, str]:
        """A unique path without an ending, the path with it, and the ending.

        Parts such as ``..`` and characters that lists or file systems cannot hold are escaped with ``%``. If ids differ
        only in their endings, all but the first keep theirs in the name.
        """
        self.taken = {name: prefix for name, prefix in self.taken.items() if image_id.startswith(prefix)}
        stem, ending = split_id(image_id)
        stem, prefix = UNSAFE.sub(lambda match: quote(match[0], safe=""), stem), image_id
        name = stem
        if name in self.taken:
            while name in self.taken:
                name += ending or "_"
        elif ending:
            prefix = image_id[: image_id.rindex(ending)]
        self.taken[name] = prefix
        return name, stem + ending, ending
