"""Names of the norms of the library, read before any test module registers more."""

from normlab import norms

ALL = norms.names()

GROUPED = tuple(name for name in ALL if hasattr(norms.get(name).linen(train=True), "num_groups"))
"""Those that group features, into 32 unless told otherwise."""
