"""Labelled examples of strangers: decoded as the images of a corpus are, in a process of its own and within limits."""

from cliper.examples import Examples, read_examples
from cliper.preprocess import InputSpec
from cluster.corpus.isolation import isolated
from cluster.corpus.limits import Limits


def find_examples(address: str, inputs: InputSpec, limits: Limits) -> Examples:
    """See `cliper.examples.read_examples`."""
    return read_examples(
        address, inputs, lambda decoder: isolated(decoder, limits), limits.max_pixels, limits.max_file_bytes
    )
