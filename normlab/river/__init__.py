"""Models that learn from a stream as it arrives: river's interface around any Flax model with any norm."""

from normlab.extras import importing

with importing("online"):
    import optax as optax
    import river as river

from normlab.river._live import Classifier, Regressor

__all__ = ["Classifier", "Regressor"]
