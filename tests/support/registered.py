"""Names of the norms of the library, read before any test module registers more."""

from normlab import norms

FEW = {"whiten": "whiten:group_size=2", "group_whiten": "group_whiten:num_groups=2"}
"""Norms that by default need more elements or features than the inputs of tests have, with options that fit."""
ALL = tuple(FEW.get(name, name) for name in norms.names())

GROUPED = tuple(name for name in ALL if getattr(norms.get(name).linen(train=True), "num_groups", None) == 32)
"""Those that group features, into 32 unless told otherwise."""
