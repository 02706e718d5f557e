"""Module of NNX that stands in the place of a folded norm."""

import jax
from flax import nnx

from normlab.tools.folding.replacement import Replacement, in_training

__all__ = ["Shift"]

_LAST = Replacement()


class Shift(nnx.Module):
    """Rest of a folded norm: `x * scale + bias`, each only if there is one.

    It takes the arguments of a call of batch norm, and is called at evaluation alone.

    Attributes:
        bias: Parameter of shape `[features]`, or `None`.
        scale: Parameter of the same shape, or `None`.
        use_running_average: True at evaluation; `train()` and `eval()` set it.

    Example:
        >>> Shift(jax.numpy.array([1.0, 2.0]))(jax.numpy.zeros((1, 2))).tolist()
        [[1.0, 2.0]]
    """

    def __init__(
        self,
        bias: jax.Array | None = None,
        scale: jax.Array | None = None,
        *,
        replacement: Replacement = _LAST,
        path: str = "shift",
    ) -> None:
        """Make the parameters.

        Args:
            bias: Added to each feature; `None` for nothing.
            scale: Multiplies each feature; `None` for nothing.
            replacement: Feature axes, and dtype of the output.
            path: Path of the norm, for messages.
        """
        self.bias = nnx.data(None if bias is None else nnx.Param(bias))
        self.scale = nnx.data(None if scale is None else nnx.Param(scale))
        self.replacement = replacement
        self.path = path
        self.use_running_average = True

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """Return `x * scale + bias`.

        Args:
            x: Activations.
            use_running_average: True at evaluation, as the norm took it.

        Raises:
            BadInput: If it is called in training.
        """
        if not (self.use_running_average if use_running_average is None else use_running_average):
            raise in_training(self.path)
        values = (None if one is None else one[...] for one in (self.scale, self.bias))
        return self.replacement(x, *values)
