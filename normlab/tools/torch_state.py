"""States of PyTorch modules in Flax models, and back.

PyTorch is not imported: a state is a mapping from names to arrays, as `state_dict()` returns it. A state contains no
options, so that epsilon and momentum are those of PyTorch's defaults unless they are given.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.errors import BadInput
from normlab.introspect.modules import Owner, is_norm
from normlab.tools.states.layout import SAME, Layout, Place, permuted, reshaped, taken
from normlab.tools.states.matching import Entry, Names, check_known, gathered, items, titled
from normlab.tools.states.torch_names import layer_names, module_paths
from normlab.tools.states.transfer import Call, Imported, Library, Notes, exported, flat, imported, name_of, paths_of

__all__ = ["Imported", "from_torch", "to_torch"]

Flatten = Mapping[str, Sequence[int]]
Naming = Names | Literal["auto", "torchvision", "timm"]

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var", "step": "num_batches_tracked"}
_PLAIN = {"kernel": "weight", "embedding": "weight"}
_COUNTER = "num_batches_tracked"
_MACHINE_EPSILON = float(np.finfo(np.float32).eps)
_PARAMETRIZED = re.compile(r"(^|\.)(parametrizations\.\w+\.\w+|weight_[guv]|weight_orig)$")
_RESNETS = ("torchvision", "timm")
_WRAPPERS = ("module.", "_orig_mod.")


def from_torch(
    state: Mapping[str, object],
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Naming = "auto",
    strict: bool = True,
    eps: float | Mapping[str, float] | None = None,
    momentum: float | None = 0.1,
    flatten: Flatten | None = None,
    inplace: bool = False,
    **kwargs: object,
) -> Imported:
    """Put the state of a PyTorch module into a Flax model.

    Layers and modules are matched in the order of the state and of the call; if kinds and shapes do not agree in this
    order, by kind and shape where these leave no choice. Each array is used once.

    Args:
        state: Arrays or tensors by name, as from `state_dict()`.
        model: A model of Linen or NNX.
        variables: Variables of the Linen model, arrays or shapes; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of modules by names of layers, such as `{"layer1.0.conv1": "block_0/conv_0"}`, as a mapping or a
            function; layers without one are matched as by `auto`. `torchvision` and `timm` name the layers of their
            residual networks for `normlab.models.resnet`.
        strict: Whether an array without a place, a place without an array and another epsilon are errors; they are in
            the report otherwise.
        eps: `eps` of the norms, or of norms by name; otherwise the default, 1e-5, and machine epsilon for RMS norm.
        momentum: `momentum` of the batch norms, the weight of the NEW value.
        flatten: Axes without the batch, such as `{"fc": (channels, height, width)}`, that were flattened ahead of a
            layer; `()` for none. Necessary where the model does not show them.
        inplace: Whether an NNX model is changed and not a copy of it.
        **kwargs: Keyword arguments of the call, such as `train=False`.

    Raises:
        BadInput: If an array is left, there is a choice, or an epsilon differs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> state = {"0.weight": np.ones((3, 2)), "0.bias": np.zeros(3), "1.weight": np.ones(3), "1.bias": np.zeros(3)}
        >>> model, x = nn.Sequential([nn.Dense(3), nn.LayerNorm(epsilon=1e-5)]), jnp.ones((1, 2))
        >>> from_torch(state, model, model.init(jax.random.key(0), x), x).names
        {'0': 'layers_0', '1': 'layers_1'}
    """
    entries = _entries(state)
    check_known("eps", eps, entries)
    check_known("flatten", flatten, entries)
    library = _library(eps, momentum, flatten or {})
    call = Call(model, variables, args, kwargs)
    return imported(library, entries, call, _paths(names, entries), strict=strict, inplace=inplace)


def to_torch(
    model: nn.Module | nnx.Module,
    variables: VariableDict | None = None,
    *args: object,
    names: Naming = "auto",
    flatten: Flatten | None = None,
    **kwargs: object,
) -> dict[str, np.ndarray]:
    """Return the numbers of a Flax model as the state of a PyTorch module, for `load_state_dict` as tensors.

    Args:
        model: A model of Linen or NNX.
        variables: Variables of the Linen model; `None` for NNX.
        *args: Arguments of a call of the model; only shapes are computed.
        names: Paths of modules by names of layers, as `Imported.names`, a function from the path to the name of the
            layer, or `torchvision` or `timm`; `auto` is the path with dots.
        flatten: See `from_torch`.
        **kwargs: Keyword arguments of the call.

    Raises:
        BadInput: If the call does not reach an array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model, x = nn.Sequential([nn.Dense(3), nn.LayerNorm()]), jnp.ones((1, 2))
        >>> {key: array.shape for key, array in to_torch(model, model.init(jax.random.key(0), x), x).items()}
        {'layers_0.bias': (3,), 'layers_0.weight': (3, 2), 'layers_1.bias': (3,), 'layers_1.weight': (3,)}
    """
    call = Call(model, variables, args, kwargs)
    layers = exported(_library(None, None, flatten or {}), call, _name_of(names, call))
    return flat(layers, ".")


def _paths(names: Naming, entries: Sequence[Entry]) -> Names | None:
    if isinstance(names, str) and names in _RESNETS:
        return module_paths(entry.name for entry in entries)
    return paths_of(None if names == "auto" else names)


def _name_of(names: Naming, call: Call) -> Callable[[str], str]:
    if isinstance(names, str) and names in _RESNETS:
        return layer_names(owner.path for owner in call.owners())
    return name_of(None if names == "auto" else names, ".")


def _entries(state: Mapping[str, object]) -> list[Entry]:
    """Return the layers of a state without the prefix of a wrapper."""
    for key in state:
        if _PARAMETRIZED.search(key):
            raise BadInput(
                f"Expected plain weights in `state`, got `{key}`. Call `torch.nn.utils.parametrize."
                "remove_parametrizations(layer, 'weight')` of the layer before `state_dict()`."
            )
    wrapper = next((one for one in _WRAPPERS if all(key.startswith(one) for key in state)), "")
    found = items(state, ".")
    return gathered(
        item._replace(name=f"{item.name}.".removeprefix(wrapper).rstrip("."), value=_array(item.value))
        for item in found
    )


def _array(value: Any) -> np.ndarray:
    """Return an array or a tensor, on any device, as an array; NumPy knows no bfloat16, which becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def _library(eps: float | Mapping[str, float] | None, momentum: float | None, flatten: Flatten) -> Library:
    def given(name: str) -> float | None:
        return eps.get(name) if isinstance(eps, Mapping) else eps

    def epsilon(name: str, kind: str) -> float:
        default = _MACHINE_EPSILON if kind == "rms" else 1e-5
        return default if (found := given(name)) is None else found

    def check(entry: Entry, owner: Owner, notes: Notes, strict: bool) -> None:
        _check_order(entry.name, owner, flatten)
        _note_padding(owner, notes)
        if owner.kind == "batch" and entry.arrays:
            _check_counter(entry, owner, given(entry.name) is not None, notes, strict)
            _note_variance(owner, notes)

    return Library(
        title="PyTorch",
        places=lambda name, owner: _places(owner, flatten.get(name)),
        optional=frozenset({_COUNTER}),
        epsilon=epsilon,
        momentum=None if momentum is None else 1 - momentum,
        unbiased=True,
        explain=_explain,
        check=check,
        added=lambda owner, parts: {_COUNTER: np.zeros((), np.int64)} if _counts(owner) else {},
    )


def _counts(owner: Owner) -> bool:
    """Return whether PyTorch's layer counts its batches, and the module does not."""
    return owner.kind == "batch" and "step" not in owner.shapes and not getattr(owner.module, "frozen", False)


def _places(owner: Owner, given: Sequence[int] | None) -> dict[str, Place]:
    """Return the places of a module's arrays, with the axes that were flattened ahead of it if they are given."""
    order = _order(owner, given)
    own = SAME if order is None else taken(order)
    names = _NORM if is_norm(owner.kind) else _PLAIN
    return {
        name: Place(names.get(name, name), _layout(owner, name, shape, own)) for name, shape in owner.shapes.items()
    }


def _layout(owner: Owner, name: str, shape: tuple[int, ...], own: Layout) -> Layout:
    rank = len(shape)
    if owner.kind in ("conv", "conv_transpose") and name == "kernel":
        return _convolution(owner, rank)
    if owner.kind == "dense":
        return _dense(owner, name, own)
    if is_norm(owner.kind) and rank == 1:
        return own
    if is_norm(owner.kind) and rank > 2:  # channels come first there
        return permuted((*range(1, rank), 0))
    return SAME


def _dense(owner: Owner, name: str, own: Layout) -> Layout:
    """Return the layout of a dense layer, whose inputs and outputs can be several axes in Flax."""
    kernel = owner.shapes["kernel"]
    features = getattr(owner.module, "features", getattr(owner.module, "out_features", kernel[-1]))
    outputs = kernel[-1] if len(kernel) == 2 else math.prod(np.ravel(features).tolist())
    if name == "bias":
        return reshaped((outputs,), owner.shapes["bias"])
    return permuted((1, 0)).then(own).then(reshaped((math.prod(kernel) // outputs, outputs), kernel))


def _convolution(owner: Owner, rank: int) -> Layout:
    space = tuple(range(2, rank))
    if owner.kind == "conv" or getattr(owner.module, "transpose_kernel", False):
        return permuted((*space, 1, 0))
    return permuted((*space, 0, 1), tuple(range(rank - 2)))


def _order(owner: Owner, given: Sequence[int] | None) -> np.ndarray | None:
    """Return PyTorch's index of each feature, where features were channels at positions before they were flattened."""
    if given is None and owner.flattening is not None:
        *positions, channels = owner.flattening.shape
    elif given:
        channels, *positions = given
    else:
        return None
    theirs = np.arange(channels * math.prod(positions)).reshape(channels, *positions)
    return np.moveaxis(theirs, 0, -1).ravel()


def _check_order(name: str, owner: Owner, flatten: Flatten) -> None:
    """Refuse to guess an order of features."""
    found = owner.flattening
    if name in flatten or found is None or (len(found.shape) == 3 and not found.reordered):
        return
    if max(found.shape) == math.prod(found.shape):  # one position, or one channel
        return
    raise BadInput(
        f"Expected to see which axes were flattened ahead of {titled(name)}, got {found.shape}"
        f"{' after a transposition' if found.reordered else ''}. Give PyTorch's axes without the batch, such as "
        f"`flatten={{'{name}': (channels, length)}}`, or `()` if both models have the same order."
    )


def _note_padding(owner: Owner, notes: Notes) -> None:
    if getattr(owner.module, "padding", None) != "SAME":
        return
    if owner.kind == "conv_transpose":
        notes.add(
            owner.path,
            "pads by 'SAME'; PyTorch's `padding=p` is `padding=((k - 1 - p, k - 1 - p + output_padding), ...)` here.",
        )
    strides = getattr(owner.module, "strides", 1)
    if owner.kind == "conv" and max(np.ravel(1 if strides is None else strides)) > 1:
        notes.add(
            owner.path,
            "pads by 'SAME', with a stride mostly at the end alone; PyTorch's `padding=1` is `padding=1` here, too.",
        )


def _note_variance(owner: Owner, notes: Notes) -> None:
    if isinstance(owner.module, nn.BatchNorm | nnx.BatchNorm):
        notes.add(owner.path, "averages biased variances, PyTorch unbiased ones; `normlab`'s batch norm can do both.")
    elif not (getattr(owner.module, "unbiased_running_var", False) or getattr(owner.module, "frozen", False)):
        notes.add(
            owner.path, "averages biased variances; to train on as PyTorch does, set `unbiased_running_var=True`."
        )


def _check_counter(entry: Entry, owner: Owner, known: bool, notes: Notes, strict: bool) -> None:
    """Refuse a frozen batch norm, which has no counter, without its epsilon: old ones had none."""
    if _COUNTER in entry.arrays:
        return
    if strict and not known:
        raise BadInput(
            f"Expected `eps` of {titled(entry.name)}, a frozen batch norm by its lack of `{_COUNTER}`: old ones had 0, "
            f"newer ones 1e-5. Give `eps={{'{entry.name}': 1e-5}}`, or the value for all norms."
        )
    if not getattr(owner.module, "frozen", False):
        notes.add(owner.path, "was frozen in PyTorch, by its lack of a counter; set `frozen=True` to keep it so.")


def _explain(entries: Sequence[Entry], owners: Sequence[Owner]) -> str:
    """Explain the first pair of a layer and a module that fit but for something that Flax lacks."""
    pairs = ((entry, owner) for entry in entries for owner in owners)
    return next((why for entry, owner in pairs if (why := _obstacle(entry, owner))), "")


def _obstacle(entry: Entry, owner: Owner) -> str:
    if owner.kind == "instance" and "running_mean" in entry.arrays:
        return (
            f"{titled(entry.name)} is an instance norm with running statistics, which Flax has none of: make it with "
            "`track_running_stats=False`."
        )
    weight, kernel = entry.arrays.get("weight"), owner.shapes.get("kernel", ())
    if owner.kind == "conv_transpose" and weight is not None and weight.ndim == len(kernel):
        inputs, features = weight.shape[:2]
        if owner.inputs[-1:] == (inputs,) and features not in kernel[-2:]:
            return f"{titled(entry.name)} is a transposed convolution in groups, which Flax has none of."
    return ""
