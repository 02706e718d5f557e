"""Names of the norms of the library, read before any test module registers more."""

from normlab import norms

ALL = norms.names()
