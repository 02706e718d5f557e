"""Training on data that are read from disk meanwhile; a killed run resumes from its last checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter

import jax
import numpy as np

from normlab.notation import PyTree
from normlab.study.design.program import Arrays, Program, Shapes, WindowSource
from normlab.study.design.provenance import data_hash, own_code
from normlab.study.training.checkpoints import Checkpoint, Progress
from normlab.study.training.loop import Fit, Outcome, on_devices, replicated, window_training

SAVED_EVERY = 60.0
"""Seconds between checkpoints."""


class StreamedProgram:
    """A compiled program that reads its data window by window.

    Attributes:
        fitting: The executable that trains on a window.
    """

    def __init__(self, program: Program, source: WindowSource, data: Mapping[str, jax.Array]) -> None:
        """Compile training and evaluation.

        Args:
            program: Program of one configuration.
            source: Source of its windows.
            data: Further data of the program, on the device.
        """
        self._program, self._source, self._data = program, source, data
        everywhere = replicated(program.mesh) if program.mesh else None

        def lowered(
            function: Callable[..., PyTree], before: Sequence[PyTree], shapes: Shapes, after: Sequence[PyTree] = ()
        ) -> jax.stages.Lowered:
            seen = {name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere) for name, s in shapes.items()}
            return jax.jit(function, out_shardings=everywhere).lower(*before, seen, *after)

        rate, state, n = on_devices(program, (np.float32(0), program.init(0), np.int32(0)))
        training = lowered(window_training(program, source.steps), (rate, state), program.sees(), (n, n))
        self.fitting = training.compile()
        self._evaluation = lowered(program.evaluate, (state,), program.sees(held_out=True)).compile()
        code = own_code()
        self._decides = training.as_text(), code, jax.__version__, jax.default_backend(), program.data_hash

    def train(self, learning_rates: Sequence[float], seeds: Sequence[int]) -> Iterator[Outcome]:
        """Make runs lazily; see `Compiled.train`."""
        for learning_rate, seed in zip(learning_rates, seeds, strict=True):
            checkpoint, start = self._start(learning_rate, seed)
            done = self._trained(np.float32(learning_rate), seed, checkpoint, start)
            metrics = {**self._evaluated(done.state, seed), **self._of_losses(done.losses)}
            checkpoint.remove()
            yield Outcome({name: float(value) for name, value in metrics.items()}, {}, done.seconds)

    def _start(self, learning_rate: float, seed: int) -> tuple[Checkpoint, Progress]:
        """Find the checkpoint of a run by everything that decides its numbers, and load the progress."""
        state = jax.device_get(self._program.init(seed))
        start = data_hash({str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))})
        checkpoint = Checkpoint(
            *self._decides, start, self._source.fingerprint(seed), float(np.float32(learning_rate)), seed
        )
        return checkpoint, checkpoint.load(Progress(state, np.zeros(0, np.float32), 0, 0.0))

    def _trained(self, rate: np.float32, seed: int, checkpoint: Checkpoint, at: Progress) -> Progress:
        """Train from some progress to the end."""
        saved, began = perf_counter(), perf_counter() - at.seconds
        state, losses, windows = self._on_devices(at.state), [at.losses], at.windows
        for window in self._source.windows(seed, at.windows):
            state, new = self._fit(rate, state, window, windows * self._source.steps)
            jax.block_until_ready(losses[-1])  # one window trains while the next one is read, and no more are queued
            losses, windows = [*losses, new], windows + 1
            if perf_counter() - saved > SAVED_EVERY:
                checkpoint.save(Progress(state, np.concatenate(losses), windows, perf_counter() - began))
                saved = perf_counter()
        jax.block_until_ready(state)
        return Progress(state, np.concatenate(losses), windows, perf_counter() - began)

    def _fit(self, rate: np.float32, state: PyTree, window: Arrays, first: int) -> Fit:
        n = min(self._source.steps, self._program.steps - first)
        rate, window, first, n = self._on_devices((rate, window, np.int32(first), np.int32(n)))
        return self.fitting(rate, state, {**self._data, **window}, first, n)

    def _evaluated(self, state: PyTree, seed: int) -> dict[str, float]:
        found = [
            jax.device_get(self._evaluation(state, {**self._data, **self._on_devices(window)}))
            for window in self._source.held_out(seed)
        ]
        errors = np.concatenate([one["errors"] for one in found])
        return {**self._source.metrics(errors), "finite": all(one["finite"] for one in found)}

    def _of_losses(self, losses: np.ndarray) -> dict[str, float]:
        losses = losses[: self._program.steps]
        bad = np.flatnonzero(~np.isfinite(losses))
        return {"train_loss": losses[-self._program.last :].mean(), "first_nonfinite": bad[0] if len(bad) else -1}

    def _on_devices(self, tree: PyTree) -> PyTree:
        return on_devices(self._program, tree)
