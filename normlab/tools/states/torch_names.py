"""Names of layers in the residual networks of torchvision and timm, and in those of `normlab.models.resnet`."""

import re
from collections.abc import Callable, Iterable

from normlab.errors import BadInput

__all__ = ["layer_names", "module_paths"]

_ENDS = {"conv1": "stem", "bn1": "norm_stem", "fc": "head"}
_LAYER = re.compile(
    r"layer(?P<stage>\d+)\.(?P<block>\d+)\.((?P<kind>conv|bn)(?P<number>\d+)|downsample\.(?P<part>[01]))"
)
_MODULE = re.compile(r"block_(?P<block>\d+)/((?P<kind>conv|norm)_(?P<number>\d+)|(?P<part>shortcut|norm_shortcut))")
_KINDS = {"conv": "conv", "bn": "norm"}
_PARTS = ("shortcut", "norm_shortcut")


def module_paths(names: Iterable[str]) -> dict[str, str]:
    """Return the paths of modules by names of layers.

    Args:
        names: Names of all layers of a network.

    Raises:
        BadInput: If a name is not that of a layer in a residual network.

    Example:
        >>> module_paths(["conv1", "layer1.0.conv2", "layer1.1.bn1", "layer2.0.downsample.0"])
        {'conv1': 'stem', 'layer1.0.conv2': 'block_0/conv_1', 'layer1.1.bn1': 'block_1/norm_0',
         'layer2.0.downsample.0': 'block_2/shortcut'}
    """
    found = {name: _LAYER.fullmatch(name) for name in names}
    blocks = sorted({(int(match["stage"]), int(match["block"])) for match in found.values() if match})
    paths: dict[str, str] = {}
    for name, match in found.items():
        if match is None and name not in _ENDS:
            raise BadInput(
                f"Expected the names of a residual network of torchvision or timm, such as `layer1.0.conv1`, got "
                f"`{name}`. Say `names='auto'`, or give the paths of the modules."
            )
        paths[name] = _ENDS[name] if match is None else f"block_{blocks.index(_block(match))}/{_module(match)}"
    return paths


def _block(match: re.Match[str]) -> tuple[int, int]:
    return int(match["stage"]), int(match["block"])


def _module(match: re.Match[str]) -> str:
    if match["part"]:
        return _PARTS[int(match["part"])]
    return f"{_KINDS[match['kind']]}_{int(match['number']) - 1}"


def layer_names(paths: Iterable[str]) -> Callable[[str], str]:
    """Return the function from the path of a module to the name of a layer; undoes `module_paths`.

    Args:
        paths: Paths of all modules of a network: a stage begins with a block whose shortcut has a kernel.

    Raises:
        BadInput: From the function, if a path is not that of a module in a residual network.
    """
    begins = {0} | {int(match["block"]) for path in paths if (match := _MODULE.fullmatch(path)) and match["part"]}
    ends = {path: name for name, path in _ENDS.items()}
    kinds = {ours: theirs for theirs, ours in _KINDS.items()}

    def name_of(path: str) -> str:
        match = _MODULE.fullmatch(path)
        if match is None and path not in ends:
            raise BadInput(
                f"Expected the paths of a residual network of `normlab.models.resnet`, such as `block_0/conv_0`, got "
                f"`{path}`. Say `names='auto'`, or give the names of the layers."
            )
        if match is None:
            return ends[path]
        block = int(match["block"])
        first = max(begin for begin in begins if begin <= block)
        part, stage = match["part"], sorted(begins).index(first) + 1
        layer = f"downsample.{_PARTS.index(part)}" if part else f"{kinds[match['kind']]}{int(match['number']) + 1}"
        return f"layer{stage}.{block - first}.{layer}"

    return name_of
