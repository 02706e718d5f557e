"""On what? Streams: examples in the order in which they arrive."""

from normlab.study.streams.recorded import bundled, from_file, recorded
from normlab.study.streams.stream import Source, Stream
from normlab.study.streams.synthetic import synthetic
from normlab.study.streams.tasks import permuted_digits, split_digits

__all__ = [
    "Stream",
    "Source",
    "synthetic",
    "bundled",
    "recorded",
    "from_file",
    "split_digits",
    "permuted_digits",
]
