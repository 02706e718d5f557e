"""Stage `peers`: speed of the norms of PyTorch, eager and compiled, on the cases of stage `layers`.

Rows are those of stage `layers`; the fractions are of a copy by PyTorch. Images are in PyTorch's memory format
`channels_last`, the layout of JAX. Outputs are compared with the formula in float32 first. Compiling takes long, and so
all cases come eager first.

On a GPU the calls of each contender are measured a second time as a CUDA graph, which launches the recorded kernels
without Python in between. Where the graph is faster, the plain time is that of the host.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.accelerator.cases import BOTH, CASES, EPSILON, FORWARD, GROUPS, TINY, Case
from benchmarks.accelerator.stage import Clock, Row, failed, plan
from benchmarks.accelerator.timing import bandwidth, seconds, speed

__all__ = ["rows"]

EAGER, COMPILED = "torch", "torch.compile"
GRAPH = "{}, graph"
"""Name of a contender whose calls are a CUDA graph."""
WARM_UP = 3
"""Calls before a graph is recorded, in which libraries choose their algorithms."""
ROUNDS = 7
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield a copy and the times of each case, eager and then compiled."""
    try:
        torch: Any = importlib.import_module("torch")
        if not tiny and not torch.cuda.is_available():
            raise RuntimeError("Expected PyTorch to see a GPU, got only a CPU.")
    except (ImportError, RuntimeError) as error:
        yield {"kind": "layer", "contender": EAGER, **failed(error)}
        return
    graphs = torch.cuda.is_available()
    chosen = [
        (contender, case) for contender in (EAGER, COMPILED) if contender not in skip for case in cases(tiny, contender)
    ]
    yield plan((1 + graphs) * len(chosen), "cases", "contender", "norm", "shape", "dtype")
    for contender, case in chosen:
        if clock.left() < 0:
            return
        yield from measured(torch, case, contender, graphs=graphs, rounds=2 if tiny else ROUNDS)


def cases(tiny: bool, contender: str) -> Sequence[Case]:
    """Return the cases of a contender; compiling for a CPU takes long."""
    return CASES if not tiny else TINY[:1] if contender == COMPILED else TINY


def measured(torch: Any, case: Case, contender: str, *, graphs: bool, rounds: int) -> Iterator[Row]:
    """Yield the rows of a case: of plain calls first, as a graph that fails may cost its process the device."""
    try:
        x, calls = prepared(torch, case, contender)
        yield from timed(torch, case, contender, x, calls, rounds)
    except Exception as error:  # a kernel may fail in the compiler, or on the device
        yield {"kind": "layer", **case.columns, "contender": contender, **failed(error)}
        return
    if graphs:
        name = GRAPH.format(contender)
        try:
            recorded = {what: graph_of(torch, call) for what, call in calls.items()}
            yield from timed(torch, case, name, x, recorded, rounds)
        except Exception as error:
            yield {"kind": "layer", **case.columns, "contender": name, **failed(error)}


def prepared(torch: Any, case: Case, contender: str) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """Return the input of a contender, and its calls."""
    x, dy = draw(torch, case), draw(torch, case)
    module = module_of(torch, case).to(x.device)
    run = module
    if contender == COMPILED:
        torch.compiler.reset()  # the compiler gives up on a class of modules after a few shapes
        run = torch.compile(module, dynamic=False)
    return x, {FORWARD: forward_call(torch, run, x), BOTH: training_call(module, run, x, dy)}


def graph_of(torch: Any, call: Callable[[], Any]) -> Callable[[], Any]:
    """Record a call as a CUDA graph; the result is overwritten by each launch."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()

    def launch() -> Any:
        graph.replay()
        return y

    return launch


def timed(
    torch: Any, case: Case, contender: str, x: Any, calls: Mapping[str, Callable[[], Any]], rounds: int
) -> Iterator[Row]:
    """Yield the rows of calls after a comparison of their outputs with the formula."""
    for call in calls.values():
        apart = distance(torch, case, x, call())
        if not apart <= TOLERANCE[case.dtype]:  # NaN is not
            raise ArithmeticError(f"Expected the numbers of the formula, got a distance of {apart:.2g}.")
    other = torch.empty_like(x)
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    times = seconds({"copy": lambda: other.copy_(x), **calls}, lambda _: wait(), rounds)
    copies = times.pop("copy")
    yield {"kind": "copy", **case.columns, "contender": contender, **bandwidth(case.bytes, copies)}
    for what, taken in times.items():
        row: Row = {"kind": "layer", **case.columns, "contender": contender, "what": what}
        yield row | speed(taken, case.copies(what), copies)


def draw(torch: Any, case: Case) -> Any:
    """Draw an array; an image has its channels second by its strides alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(*case.shape, device=device, dtype=getattr(torch, case.dtype))
    return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def module_of(torch: Any, case: Case) -> Any:
    """Return the module of a norm; the parameters of batch norm stay in float32, as cuDNN wants them."""
    features, nn = case.shape[-1], torch.nn
    if case.norm == "batch":
        return nn.BatchNorm2d(features, eps=EPSILON)
    module = {
        "layer": lambda: nn.LayerNorm(features, eps=EPSILON),
        "rms": lambda: nn.RMSNorm(features, eps=EPSILON),
        "group": lambda: nn.GroupNorm(GROUPS, features, eps=EPSILON),
    }[case.norm]()
    return module.to(getattr(torch, case.dtype))


def forward_call(torch: Any, run: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    """Return the forward pass, without what a backward pass would need."""

    def call() -> Any:
        with torch.no_grad():
            return run(x)

    return call


def training_call(module: Any, run: Callable[[Any], Any], x: Any, dy: Any) -> Callable[[], Any]:
    """Return the forward and the backward pass, with gradients of the input and the parameters."""
    x = x.detach().requires_grad_()

    def call() -> Any:
        x.grad = None
        module.zero_grad(set_to_none=True)
        y = run(x)
        y.backward(dy)
        return y

    return call


def distance(torch: Any, case: Case, x: Any, y: Any) -> float:
    """Return the largest difference from the formula in float32, in units of the largest value."""
    wide = x.float()
    if case.norm == "group":
        wide = wide.reshape(len(x), GROUPS, -1)
    axes = {"batch": (0, 2, 3), "group": (2,)}.get(case.norm, (-1,))
    centered = wide if case.norm == "rms" else wide - wide.mean(axes, keepdim=True)
    right = centered * torch.rsqrt(centered.square().mean(axes, keepdim=True) + EPSILON)
    return float((y.detach().float() - right.reshape(y.shape)).abs().max() / right.abs().max())
