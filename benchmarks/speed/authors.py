"""How fast are whitening and power norm beside their authors' code?

The authors publish modules for PyTorch. The script reads them from clones that you made, and times them beside the
norms of this package in one process: contenders take turns in shuffled rounds. Time to compile is not included, and
both have all processors.

    git clone https://github.com/huangleiBuaa/IterNorm-pytorch
    git clone https://github.com/sIncerass/powernorm
    python -m benchmarks.speed.authors IterNorm-pytorch powernorm    # a minute
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from benchmarks.speed._timing import at_least_one, environment, interleave, ratio
from benchmarks.speed.norms import FORWARD, TRAINING, draw, sizes, training_call
from normlab import norms

WHITENING, POWER = "extension/normailzation/iterative_normalization.py", "fairseq/modules/norms/mask_powernorm.py"
"""Files in the two clones."""

WHITENED = 64
"""Features that are whitened together, by both."""

CASES = (("whiten", (64, 32, 32, 64)), ("whiten", (8192, 768)), ("power", (64, 128, 768)))
"""Norms, and shapes with features last."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("whitening", type=Path, help="clone of IterNorm-pytorch")
    parser.add_argument("power", type=Path, help="clone of powernorm")
    parser.add_argument("--rounds", type=at_least_one, default=15)
    args = parser.parse_args()
    files = {"whiten": args.whitening / WHITENING, "power": args.power / POWER}
    for file in files.values():
        if not file.is_file():
            parser.error(f"Expected the file {file}. Clone the repository that the help names.")
    modules = {norm: loaded(norm, file) for norm, file in files.items()}
    print(environment(jax.devices()[0].device_kind, ("torch",)))
    print(f"{'norm':8}{'shape':14}{'what':20}{'authors ms':>11}{'ours ms':>9}{'ours / authors':>16}  quartiles")
    for (norm, shape), what in ((case, what) for case in CASES for what in (FORWARD, TRAINING)):
        x, dy = draw(shape)
        options = {"group_size": WHITENED} if norm == "whiten" else {}
        ours = training_call(norms.get(norm, **options).linen(train=True), x, dy, what).compiled()
        theirs = authors_call(norm, modules[norm], shape, what == TRAINING)
        seconds = interleave({"ours": ours, "authors": theirs}, args.rounds)
        found = ratio(seconds["ours"], seconds["authors"])
        own, other = (1e3 * statistics.median(seconds[name]) for name in ("ours", "authors"))
        print(
            f"{norm:8}{sizes(shape):14}{what:20}{other:11.1f}{own:9.1f}{found.ratio:16.2f}"
            f"  {found.ratio_low:.2f} to {found.ratio_high:.2f}",
            flush=True,
        )


def loaded(norm: str, file: Path) -> ModuleType:
    """Run a file of the authors, for which PyTorch gets back a name that it has dropped."""
    import torch

    torch.autograd.function.FunctionCtx.saved_variables = property(lambda context: context.saved_tensors)
    spec = importlib.util.spec_from_file_location(norm, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def authors_call(norm: str, module: ModuleType, shape: Sequence[int], backward: bool) -> Callable[[], Any]:
    """Return a call of the authors' module in training, with features where it expects them."""
    import torch

    features = shape[-1]
    if norm == "whiten":
        layer = module.IterNorm(features, num_channels=WHITENED, dim=len(shape))
        layer.running_wm = layer.running_wm.clone()  # an expanded tensor cannot be written to
        x = torch.randn(shape[0], features, *shape[1:-1], requires_grad=True)
    else:
        layer = module.MaskPowerNorm(features)
        x = torch.randn(*shape, requires_grad=True)
    dy = torch.randn_like(x)
    given = (x, layer.weight, layer.bias)

    def forward() -> Any:
        with torch.no_grad():
            return layer(x)

    return (lambda: torch.autograd.grad(layer(x), given, dy)) if backward else forward


if __name__ == "__main__":
    main()
