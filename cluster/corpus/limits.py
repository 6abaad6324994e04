"""What a single image may cost before it is given up, so that one bad file cannot stop a job."""

from dataclasses import dataclass

from cliper.decode import MAX_PIXELS
from schemas.errors import RequestError

LARGEST = 10**9
"""No limit makes sense above that, and timers and memory have limits of their own."""


@dataclass(frozen=True)
class Limits:
    """Limits on single images. An image above a limit becomes a row with a status."""

    max_pixels: int = MAX_PIXELS
    """Largest image in pixels (the default is Pillow's own limit, about 13,000 x 13,000)."""
    max_file_mb: int = 256
    """Largest image file in MB (10^6 bytes)."""
    picture_timeout_s: float = 60.0
    """Longest time for decoding one image, in seconds."""
    decode_memory_mb: int = 1800
    """Memory for decoding an image, in MB: each read task reserves it, and no decoder gets more. The default is 10
    bytes for each pixel of the largest image."""

    @property
    def max_file_bytes(self) -> int:
        return self.max_file_mb * 10**6

    @property
    def decode_memory_bytes(self) -> int:
        return self.decode_memory_mb * 10**6

    def check(self) -> None:
        """Raises RequestError: a limit is not positive, or is none."""
        for name, value in vars(self).items():
            if not 0 < value <= LARGEST:
                raise RequestError(f"--{name.replace('_', '-')} must be above 0 and at most {LARGEST:,}, not {value}")


DEFAULT_LIMITS = Limits()
