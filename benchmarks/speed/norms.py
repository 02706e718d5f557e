"""How fast are the norms, compared with Flax's?

The script times each norm and its Flax peer, forward and forward plus backward (gradients of input, scale and bias), in
one process: contenders take turns in shuffled rounds, and the table contains medians. Compile time is not included. On
one device, times are also in units of the time to copy the input, measured in the same rounds.

    python -m benchmarks.speed.norms                                        # all norms, all shapes, one device
    python -m benchmarks.speed.norms --norms layer,batch --rounds 50 --shapes "transformer,64x8x8x32"
    python -m benchmarks.speed.norms --output benchmarks/results/speed-cpu  # writes .csv and .md
    python -m benchmarks.speed.norms --devices 8                            # statistics across devices

With `--devices`, a batch of these shapes is divided over devices. On CPU they are virtual and share the cores: their
times include work and synchronization, but no network. A training step runs under `jax.shard_map`
(statistics by `axis_name`), and under plain `jax.jit` with a sharded batch. Contenders:
    ours             statistics of the whole batch
    ours, local      statistics of each device's part: under `jit`, of ghost batches as large as the parts
    Flax             statistics of the whole batch by Flax's default, E[x^2] - E[x]^2
    Flax, two-pass   the same with `use_fast_variance=False`: as stable as ours
Collectives and the kB that a device gets from them are counted in what XLA compiled.
"""

import argparse
import itertools
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.speed._shapes import SHAPES
from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from normlab import norms
from normlab.study.worker import strategy

PEERS: dict[str, Callable[..., nn.Module]] = {
    "batch": partial(nn.BatchNorm, use_running_average=False),
    "batch_renorm": partial(nn.BatchNorm, use_running_average=False),  # Flax has no batch renorm: its batch norm
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "group": nn.GroupNorm,
    "instance": nn.InstanceNorm,
}
FORWARD, TRAINING = "forward", "forward + backward"
LOCAL = "ours, local"
DATA = "data"
"""Name of the axis of devices."""

_COLLECTIVE = re.compile(
    r" = (.+?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]")
"""Bits of an element and sizes, in XLA's text."""


class Call(NamedTuple):
    """A function with its arguments."""

    function: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Call the function, and wait for its result."""
        return jax.block_until_ready(self.function(*self.arguments))

    def compiled(self, **options: Any) -> "Call":
        """Compile the function; options are those of `jax.jit`."""
        return Call(jax.jit(self.function, **options).lower(*self.arguments).compile(), self.arguments)


@dataclass(frozen=True, kw_only=True)
class OneDevice:
    """One measurement on one device; times are medians over rounds."""

    norm: str
    shape: str
    what: str
    copy_ms: float
    flax_copies: float
    ours_copies: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    TITLE: ClassVar = "Speed beside Flax"
    HEADING: ClassVar = (
        f"{'norm':13}{'shape':20}{'what':20}{'copy ms':>9}{'Flax':>8}{'ours':>8}{'ours/Flax':>11}  quartiles"
    )
    BAR: ClassVar = {FORWARD: 1.5, TRAINING: 1.1}
    """Largest acceptable ratio to Flax: stability may cost a pass forward, and nothing in training."""

    SUMMARY: ClassVar = f"(forward {BAR[FORWARD]}, {TRAINING} {BAR[TRAINING]}); Flax and ours in units of a copy."

    @property
    def within_bar(self) -> bool | None:
        """True if the ratio keeps the bar; `None` without a bar."""
        return self.ratio <= self.BAR[self.what]

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio over the bar."""
        return (
            f"{self.norm:13}{self.shape:20}{self.what:20}{self.copy_ms:9.2f}{self.flax_copies:8.1f}"
            f"{self.ours_copies:8.1f}{self.ratio:11.2f}{' ' if self.within_bar else '!'} "
            f"{self.ratio_low:.2f} to {self.ratio_high:.2f}"
        )


@dataclass(frozen=True, kw_only=True)
class AcrossDevices:
    """One contender on several devices; times are medians over rounds, ratios those of ours to it."""

    norm: str
    shape: str
    devices: int
    what: str
    way: str
    contender: str
    ms: float
    collectives: int
    kilobytes: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    TITLE: ClassVar = "Speed across devices, beside Flax"
    HEADING: ClassVar = (
        f"{'norm':13}{'shape':14}{'what':20}{'under':11}{'contender':15}{'ms':>9}{'collectives':>13}{'kB':>8}"
        f"{'ours/it':>9}  quartiles"
    )
    BAR: ClassVar = 1.0
    """Largest acceptable ratio to Flax's default in training: stability must be free."""

    SUMMARY: ClassVar = f"(ours/Flax {BAR}, {TRAINING})."

    @property
    def within_bar(self) -> bool | None:
        """True if the ratio keeps the bar; `None` without a bar."""
        return self.ratio <= self.BAR if (self.contender, self.what) == ("Flax", TRAINING) else None

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio over the bar."""
        start = (
            f"{self.norm:13}{self.shape:14}{self.what:20}{self.way:11}{self.contender:15}{self.ms:9.2f}"
            f"{self.collectives:13}{self.kilobytes:8.1f}"
        )
        if self.contender == "ours":
            return start
        mark = "!" if self.within_bar is False else " "
        return f"{start}{self.ratio:9.2f}{mark} {self.ratio_low:.2f} to {self.ratio_high:.2f}"


Row = OneDevice | AcrossDevices


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", help="comma-separated; default: all with a peer")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated names, or sizes as in 64x8x8x32")
    parser.add_argument("--devices", type=int, help="measure statistics across this many")
    parser.add_argument("--rounds", type=at_least_one, default=30)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()

    try:
        names = norms.parse_list(args.norms) if args.norms else default(args.devices)
        chosen = [peered(name, args.devices) for name in names]
        shapes = [shape_of(text, args.devices or 1) for text in args.shapes.split(",")]
        mesh = None if args.devices is None else mesh_of(args.devices)
    except ValueError as error:
        parser.error(str(error))

    rows: list[Row] = []
    kind = AcrossDevices if mesh else OneDevice
    device = jax.devices()[0].device_kind
    heading = f"{environment(f'{mesh.size} x {device}' if mesh else device)}\n{kind.HEADING}"
    print(heading)
    for shape, norm, what in itertools.product(shapes, chosen, (FORWARD, TRAINING)):
        if norm.needs_spatial and len(shape) < 3:
            continue
        measured = measure(norm, shape, what, args.rounds, mesh)
        print(*measured, sep="\n", flush=True)
        rows += measured
    kept = [row.within_bar for row in rows if row.within_bar is not None]
    summary = f"{sum(kept)} of {len(kept)} rows within the bars {kind.SUMMARY}"
    print(summary)
    if args.output:
        write(args.output, kind.TITLE, rows, "\n".join([heading, *map(str, rows)]), summary)


def default(devices: int | None) -> list[str]:
    """Return the names of the norms that are measured by default."""
    return [name for name in PEERS if norms.get(name).needs_batch or not devices]


def peered(text: str, devices: int | None) -> norms.Norm:
    """Return a norm that Flax also has; across devices, a norm whose statistics cross examples."""
    norm = norms.get(text)
    known = default(devices)
    if norm.name not in known:
        what = "norm whose statistics cross examples" if devices else "norm with a Flax peer"
        raise ValueError(f"Expected a {what} among {', '.join(known)}, got {norm.name!r}.")
    return norm


def shape_of(text: str, devices: int) -> tuple[int, ...]:
    """Return the shape of a name, or of sizes such as 64x8x8x32."""
    if text not in SHAPES and not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", text):
        raise ValueError(f"Expected a shape among {', '.join(SHAPES)}, or sizes as in 64x8x8x32, got {text!r}.")
    shape = SHAPES[text] if text in SHAPES else tuple(map(int, text.split("x")))
    if shape[0] % devices:
        raise ValueError(f"Expected a batch that {devices} devices divide evenly, got {shape[0]} in {sizes(shape)}.")
    if math.prod(shape[:-1]) == devices:
        raise ValueError(f"Expected at least two elements of a feature on a device, got one of {sizes(shape)}.")
    return shape


def sizes(shape: tuple[int, ...]) -> str:
    """Write a shape as 64x8x8x32."""
    return "x".join(map(str, shape))


def mesh_of(devices: int) -> Mesh:
    """Return a mesh of devices, which are virtual on CPU."""
    if devices < 2:
        raise ValueError(f"Expected `--devices` to be at least 2, got {devices}. Leave it out for one device.")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)
    with strategy.environment({"PJRT_NPROC": str(strategy.THREADS_PER_DEVICE * devices)}):
        found = jax.devices()
    if len(found) < devices:
        raise ValueError(
            f"Expected `--devices` to be at most {len(found)}, the number of devices here ({found[0].device_kind}), "
            f"got {devices}. On CPU they are virtual, as many as asked for, unless XLA_FLAGS says how many."
        )
    return Mesh(np.array(found[:devices]), (DATA,))


def measure(norm: norms.Norm, shape: tuple[int, ...], what: str, rounds: int, mesh: Mesh | None) -> Sequence[Row]:
    """Time one norm, on the devices of a mesh or on one."""
    if mesh:
        return across_devices(norm, shape, what, rounds, mesh)
    return [one_device(norm, shape, what, rounds)]


def one_device(norm: norms.Norm, shape: tuple[int, ...], what: str, rounds: int) -> OneDevice:
    """Time one norm against its peer."""
    x, dy = draw(shape)
    modules = {"ours": norm.linen(train=True), "Flax": PEERS[norm.name](**norm.options)}
    calls = {name: training_call(module, x, dy, what).compiled() for name, module in modules.items()}
    calls["copy"] = Call(lambda x: x + 1, (x,)).compiled()
    seconds = interleave(calls, rounds)
    copy = statistics.median(seconds["copy"])
    return OneDevice(
        norm=str(norm),
        shape=sizes(shape),
        what=what,
        copy_ms=1e3 * copy,
        flax_copies=statistics.median(seconds["Flax"]) / copy,
        ours_copies=statistics.median(seconds["ours"]) / copy,
        rounds=rounds,
        **ratio(seconds["ours"], seconds["Flax"])._asdict(),
    )


def across_devices(norm: norms.Norm, shape: tuple[int, ...], what: str, rounds: int, mesh: Mesh) -> list[AcrossDevices]:
    """Time one norm on several devices in both ways, against its peers and itself."""
    x, dy = jax.device_put(draw(shape), NamedSharding(mesh, P(DATA)))
    modules = contenders(norm, examples=shape[0] // mesh.size)
    calls = {key: spread(training_call(module, x, dy, what), mesh, *key) for key, module in modules.items()}
    seconds = interleave(calls, rounds)
    return [
        AcrossDevices(
            norm=str(norm),
            shape=sizes(shape),
            devices=mesh.size,
            what=what,
            way=way,
            contender=name,
            ms=1e3 * statistics.median(seconds[way, name]),
            rounds=rounds,
            **collectives(call.function.as_text())._asdict(),
            **ratio(seconds[way, "ours"], seconds[way, name])._asdict(),
        )
        for (way, name), call in calls.items()
    ]


def contenders(norm: norms.Norm, examples: int) -> dict[tuple[str, str], nn.Module]:
    """Return modules by the way they run and by name; `examples` is the number of examples of a device."""
    ours, flax = partial(norm.linen, train=True), partial(PEERS[norm.name], **norm.options)
    return {
        ("shard_map", "ours"): ours(axis_name=DATA),
        ("shard_map", LOCAL): ours(),
        ("shard_map", "Flax"): flax(axis_name=DATA),
        ("shard_map", "Flax, two-pass"): flax(axis_name=DATA, use_fast_variance=False),
        ("jit", "ours"): ours(),
        ("jit", LOCAL): ours(ghost_batch_size=examples),
        ("jit", "Flax"): flax(),
        ("jit", "Flax, two-pass"): flax(use_fast_variance=False),
    }


def draw(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Draw an input, and the cotangent of the output."""
    x, dy = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    return x, dy


def training_call(module: nn.Module, x: jax.Array, dy: jax.Array, what: str) -> Call:
    """Return a module's call as in a training step: running statistics are outputs."""
    variables = module.init(jax.random.key(0), x)
    params = variables.get("params", {})
    state = {k: v for k, v in variables.items() if k != "params"}

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return module.apply({"params": params, **state}, x, mutable=list(state))  # pyright: ignore[reportReturnType]

    def both(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pull, state = jax.vjp(forward, params, x, has_aux=True)
        return y, state, pull(dy)

    return Call(forward, (params, x)) if what == FORWARD else Call(both, (params, x, dy))


def spread(call: Call, mesh: Mesh, way: str, contender: str) -> Call:
    """Compile a training call for parameters that the devices share and a batch that they divide."""
    params, *batch = call.arguments
    call = Call(call.function, (jax.device_put(params, NamedSharding(mesh, P())), *batch))
    shared, divided = P(), P(DATA)
    outputs = (divided, shared, (shared, divided))[: 1 + len(batch)]  # output, running statistics, gradients
    if way == "jit":
        return call.compiled(out_shardings=jax.tree.map(partial(NamedSharding, mesh), outputs))
    if contender == LOCAL:  # every device has its own running statistics, and keeps them
        call = Call(stacked(call.function), call.arguments)
        outputs = (divided, divided, *outputs[2:])
    inputs = (shared, *[divided for _ in batch])
    mapped = jax.shard_map(call.function, mesh=mesh, in_specs=inputs, out_specs=outputs)
    return Call(mapped, call.arguments).compiled()


def stacked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a leading axis, over which devices are joined, to the second output, running statistics."""

    def wrapped(*arguments: Any) -> Any:
        y, state, *gradients = function(*arguments)
        return y, jax.tree.map(lambda a: a[None], state), *gradients

    return wrapped


class Collectives(NamedTuple):
    """Collectives of a program: their number, and the kB that each device receives."""

    collectives: int
    kilobytes: float


def collectives(program: str) -> Collectives:
    """Count the collectives in a program's text."""
    found = _COLLECTIVE.findall(program)
    arrays = [array for results in found for array in _ARRAY.findall(results)]
    bits = [int(bits) * math.prod(int(n) for n in shape.split(",") if n) for bits, shape in arrays]
    return Collectives(len(found), sum(bits) / 8e3)


if __name__ == "__main__":
    main()
