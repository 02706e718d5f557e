"""Names that Flax does not document, as they were read in Flax 0.12.8."""

from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

__all__ = ["OVERWRITE_WITH_GRADIENT"]
