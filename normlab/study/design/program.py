"""A training program, built by a problem and run by the training loop."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from normlab.notation import PyTree
from normlab.study.design.provenance import data_hash

Array = np.ndarray | jax.Array
Arrays = Mapping[str, Array]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclass(frozen=True, kw_only=True)
class WindowSource:
    """Source of data that do not fit on the device: windows of arrays, which the program receives with its data.

    `Program.step` receives the window of its step. `Program.evaluate` receives the windows of held-out examples one by
    one and returns `errors`, one for each example, and `finite`.

    Attributes:
        steps: Updates per window.
        fingerprint: `seed -> a hash` of the order of examples in its windows.
        windows: `(seed, n) -> windows`, without the first n; the last window is padded.
        held_out: `seed -> windows` of the examples for validation and the test; the last window is padded.
        shapes: Shapes of the arrays in these two kinds of windows.
        metrics: `errors of all held-out examples -> metrics`.
    """

    steps: int
    fingerprint: Callable[[int], str]
    windows: Callable[[int, int], Iterator[Arrays]]
    held_out: Callable[[int], Iterator[Arrays]]
    shapes: tuple[Shapes, Shapes]
    metrics: Callable[[np.ndarray], Mapping[str, float]]


class Start(NamedTuple):
    """`Program.init` in two parts: `init(seed)` is `device(seed, host(seed))`.

    Accelerators take longer to start the operations of `init` one by one than to train a small model, so the second
    part is compiled there, for all runs of a stack.

    Attributes:
        host: `seed -> the state without its weights`, in NumPy.
        device: `(seed, this) -> state`, with weights; may be traced.
    """

    host: Callable[[int], PyTree]
    device: Callable[[int | jax.Array, PyTree], PyTree]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The training of one configuration, as functions; a run is `init`, then `steps` times `step`, then `evaluate`.

    `step` and `evaluate` are pure and traced once a configuration. On CPU `init` runs operation by operation,
    outside of the compiled programs: its operations are the same in all configurations of a problem, so a process
    compiles them once. Inside the programs they took more than half of the time to compile a configuration (3 of 5 s
    for the MLP).

    Attributes:
        data: Arrays that all runs share, by name.
        fingerprints: Further arrays by name that enter the hash of the data; no device has them.
        init: `seed -> state`, a pytree of arrays with everything that the seed decides: split, parameters, order.
        start: `init` in two parts, for accelerators; `None` if it cannot be divided.
        step: `(state, t, learning_rate, data) -> (state, loss)` for t = 0, 1, ..., `steps - 1`.
        forward: `(state, t, data) -> loss`: a step as far as its loss, which reveals wrong shapes. With it,
            configurations that differ in a factor's value alone have the whole step traced once before the runs.
        evaluate: `(state, data) -> metrics`: scalars `validation`, `test` and `finite` (whether all outputs are finite:
            the argmax of NaN is class 0, so an error alone does not show it); `validation_sem`, the standard error of
            `validation`, and `validation_chance`, chance on the validation examples where it differs from `chance`,
            decide whether a run has collapsed (see `worker.outcome.status_of`); further scalars are recorded as well.
        steps: Number of updates.
        last: Number of the last steps over which `train_loss` is averaged.
        chance: The metric of a model that has learned nothing; `None` where there is no such number.
        mesh: The devices that train one model together, each with its share of every batch; `None` is one device.
        series: `(state, data) -> vectors by name`, measured at all of `problem.MEASURED_AT`; `None` for nothing.
        at_end: Whether series are measured at the end alone, and are NaN before.
        examine: `(state, data) -> scalars by name`, called with arrays after each run that is evaluated, outside of any
            compiled program, for functions that run on the host; recorded in the place of scalars of `evaluate` with
            the same names. `None` for nothing.
        description: A description of the data for the report.
        window_source: Source of data that are read during training; `None` if all data are in `data`.
        libraries: Distributions beyond JAX, Flax, Optax and NumPy that decide its numbers, e.g. `river`; their versions
            are in the key of every run.
    """

    data: Mapping[str, np.ndarray]
    init: Callable[[int], PyTree]
    step: Callable[[PyTree, jax.Array, jax.Array, Arrays], tuple[PyTree, jax.Array]]
    evaluate: Callable[[PyTree, Arrays], Mapping[str, jax.Array]]
    steps: int
    last: int
    start: Start | None = None
    chance: float | None = None
    mesh: Mesh | None = None
    series: Callable[[PyTree, Arrays], Mapping[str, jax.Array]] | None = None
    at_end: bool = False
    examine: Callable[[PyTree, Arrays], Mapping[str, float]] | None = None
    forward: Callable[[PyTree, jax.Array, Arrays], jax.Array] | None = None
    description: str = ""
    window_source: WindowSource | None = None
    fingerprints: Mapping[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    libraries: tuple[str, ...] = ()

    @property
    def data_hash(self) -> str:
        """Compute the sha256 of data and fingerprints, for run keys."""
        return data_hash({**self.data, **self.fingerprints})

    def sees(self, *, held_out: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of all data that a step receives, or an evaluation."""
        windows: Shapes = self.window_source.shapes[held_out] if self.window_source else {}
        return {**jax.eval_shape(lambda: dict(self.data)), **windows}
