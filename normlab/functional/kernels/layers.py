"""Which layers have a kernel that can be normalized, and the shape in which it is."""

from collections.abc import Sequence

from jax import Array


def check_layer(layer: object, unfit: tuple[type, ...]) -> None:
    """Raise a `ValueError` unless a layer's kernel, if it has one, ends in the output features.

    Args:
        layer: A layer of Linen or NNX.
        unfit: Types of layers whose kernels do not.
    """
    kind = type(layer).__name__
    if getattr(layer, "transpose_kernel", False):
        raise ValueError(
            f"Expected {kind} with `transpose_kernel=False`, got True: the last axis of its kernel has inputs. "
            "Leave the option out, and swap the last two axes of a kernel that you load."
        )
    if isinstance(layer, unfit) or getattr(layer, "batch_dims", ()) or getattr(layer, "batch_axis", {}):
        raise ValueError(
            f"Expected a layer whose kernel is shared and ends in its output features, got {kind}"
            f"{'' if isinstance(layer, unfit) else ' with batch dimensions'}. Wrap a dense layer or a convolution."
        )


def no_kernel(layer: object) -> ValueError:
    """Return the error for a layer without a kernel."""
    return ValueError(
        f"Expected a layer with a parameter `kernel` of its own, got {type(layer).__name__}. Wrap the dense layers and "
        "convolutions inside of it."
    )


def flat_outputs(kernel: Array, features: int | Sequence[int]) -> Array:
    """Return a kernel with one axis for its output features.

    Args:
        kernel: Raw kernel, `[..., *features]`.
        features: Number of output features, or the numbers along several axes.
    """
    count = len(features) if isinstance(features, Sequence) else 1
    return kernel.reshape(*kernel.shape[:-count], -1)
