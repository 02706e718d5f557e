"""Kernels in Pallas, as contenders: a measure of how much a kernel would gain, no part of the library.

Rows (layer and RMS norm): a program holds whole rows in registers. The backward pass is persistent: a fixed number of
programs stride over the rows, keep their shares of the gradients of scale and bias in registers, and write them once.
Columns (batch, group and instance norm): programs stride over tiles of positions; means and squares of tiles are merged
by Chan's formula, and the output is left to XLA, which fuses it.

The kernels take Triton's route through Pallas, which JAX has deprecated since 0.11: good enough to measure with, and
nothing to ship.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

__all__ = ["Launch", "columns_norm", "rows_norm"]

Norm = Callable[[Array, Array, Array], Array]
"""Maps `x`, scale and bias to the output; differentiable."""

TILE = 4096
"""Elements of a tile of rows: 32 registers a thread with four warps."""


@dataclass(frozen=True)
class Launch:
    """How kernels are launched.

    Attributes:
        multiprocessors: Of the device.
        interpret: Whether to interpret kernels, as on a CPU.
    """

    multiprocessors: int = 132
    interpret: bool = False

    def __call__(
        self, kernel: Callable[..., None], outputs: Any, grid: tuple[int, ...], *, elements: int, stages: int = 2
    ) -> Callable[..., Any]:
        """Return a kernel's call, with a warp for each 1,024 of the elements of a tile, between 4 and 16."""
        warps = min(max(power_of_two(elements // 1024), 4), 16)
        parameters = None if self.interpret else triton.CompilerParams(warps, stages)
        return pl.pallas_call(kernel, outputs, grid=grid, interpret=self.interpret, compiler_params=parameters)


def rows_norm(launch: Launch, *, center: bool, epsilon: float) -> Norm:
    """Return layer norm, or RMS norm (not `center`), of `x` [rows, features]."""

    @jax.custom_vjp
    def norm(x: Array, scale: Array, bias: Array) -> Array:
        return row_forward(launch, x, scale, bias, center, epsilon)[0]

    def forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
        y, mean, rstd = row_forward(launch, x, scale, bias, center, epsilon)
        return y, (x, scale, mean, rstd)

    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
        x, scale, mean, rstd = saved
        return row_backward(launch, x, scale, mean, rstd, dy, center)

    norm.defvjp(forward, backward)
    return norm


def columns_norm(launch: Launch, *, pool: int, epsilon: float) -> Norm:
    """Return batch, instance or group norm of `x` [samples, positions, features].

    Args:
        launch: See `Launch`.
        pool: Neighbouring features that share their statistics.
        epsilon: Added to the variance, inside the root.
    """

    def forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
        of_columns, var = column_statistics(launch, x)
        mean = pooled(of_columns, pool)
        rstd = lax.rsqrt(pooled(var + lax.square(of_columns - mean), pool) + epsilon)
        y = (x.astype(jnp.float32) - mean[:, None]) * (rstd * scale)[:, None] + bias
        return y.astype(x.dtype), (x, scale, mean, rstd)

    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
        x, scale, mean, rstd = saved
        of_dy, along = column_sums(launch, x, mean, dy)
        shift = -rstd * pooled(of_dy * scale, pool) / x.shape[1]
        slope = -(rstd**3) * pooled(along * scale, pool) / x.shape[1]
        centered = x.astype(jnp.float32) - mean[:, None]
        dx = dy.astype(jnp.float32) * (rstd * scale)[:, None] + centered * slope[:, None] + shift[:, None]
        return dx.astype(x.dtype), (along * rstd).sum(0), of_dy.sum(0)

    @jax.custom_vjp
    def norm(x: Array, scale: Array, bias: Array) -> Array:
        return forward(x, scale, bias)[0]

    norm.defvjp(forward, backward)
    return norm


def row_forward(
    launch: Launch, x: Array, scale: Array, bias: Array, center: bool, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return the output, and mean and reciprocal deviation of each row."""
    (n, features), (rows, columns) = x.shape, row_tile(x)

    def kernel(x_ref: Any, scale_ref: Any, bias_ref: Any, y_ref: Any, mean_ref: Any, rstd_ref: Any) -> None:
        these, live = span(pl.program_id(0) * rows, rows, n)
        every, real = span(0, columns, features)
        mask = live[:, None] & real[None, :]
        centered, mean = load(x_ref, (these, every), mask), jnp.zeros(rows, jnp.float32)
        if center:
            mean = centered.sum(1) / features
            centered = jnp.where(mask, centered - mean[:, None], 0)
        rstd = lax.rsqrt(lax.square(centered).sum(1) / features + epsilon)
        gain, shift = (load(ref, (every,), real)[None, :] for ref in (scale_ref, bias_ref))
        store(y_ref, (these, every), centered * rstd[:, None] * gain + shift, mask)
        store(mean_ref, (these,), mean, live)
        store(rstd_ref, (these,), rstd, live)

    outputs = like(x), floats(n), floats(n)
    return launch(kernel, outputs, (pl.cdiv(n, rows),), elements=rows * columns)(x, scale, bias)


def row_backward(
    launch: Launch, x: Array, scale: Array, mean: Array, rstd: Array, dy: Array, center: bool
) -> tuple[Array, Array, Array]:
    """Return the gradients of `x`, scale and bias."""
    (n, features), (rows, columns) = x.shape, row_tile(x)
    tiles = pl.cdiv(n, rows)
    programs = min(tiles, launch.multiprocessors * (4 if columns <= TILE else 2))

    def kernel(
        x_ref: Any,
        scale_ref: Any,
        mean_ref: Any,
        rstd_ref: Any,
        dy_ref: Any,
        dx_ref: Any,
        dscale_ref: Any,
        dbias_ref: Any,
    ) -> None:
        program = pl.program_id(0)
        every, real = span(0, columns, features)
        gain = load(scale_ref, (every,), real)[None, :]

        def tile(i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            these, live = span((program + i * programs) * rows, rows, n)
            mask = live[:, None] & real[None, :]
            by, middle = (load(ref, (these,), live)[:, None] for ref in (rstd_ref, mean_ref))
            dy = load(dy_ref, (these, every), mask)
            y = jnp.where(mask, (load(x_ref, (these, every), mask) - middle) * by, 0)
            slope = dy * gain
            dx = slope - y * (slope * y).sum(1)[:, None] / features
            dx = dx - slope.sum(1)[:, None] / features if center else dx
            store(dx_ref, (these, every), dx * by, mask)
            return sums[0] + (dy * y).sum(0), sums[1] + dy.sum(0)

        nothing = jnp.zeros(columns, jnp.float32)
        dscale, dbias = lax.fori_loop(0, (tiles - program + programs - 1) // programs, tile, (nothing, nothing))
        store(dscale_ref, (program, every), dscale, real)
        store(dbias_ref, (program, every), dbias, real)

    outputs = like(x), floats(programs, features), floats(programs, features)
    call = launch(kernel, outputs, (programs,), elements=rows * columns)
    dx, dscale, dbias = call(x, scale, mean, rstd, dy)
    return dx, dscale.sum(0), dbias.sum(0)


@dataclass(frozen=True)
class Columns:
    """Programs that stride over an array [samples, positions, features], each over tiles of its features.

    Attributes:
        shape: Of the array.
        multiprocessors: Of the device.
    """

    shape: Sequence[int]
    multiprocessors: int
    rows: int = 32

    @property
    def columns(self) -> int:
        """Features of a tile."""
        return min(power_of_two(self.shape[2]), 128)

    @property
    def tiles(self) -> int:
        """Tiles of positions."""
        return pl.cdiv(self.shape[1], self.rows)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Samples, tiles of features, and programs for each pair of both."""
        blocks = pl.cdiv(self.shape[2], self.columns)
        return self.shape[0], blocks, min(self.tiles, max(1, self.multiprocessors * 8 // (self.shape[0] * blocks)))

    def place(self) -> "Place":
        """Return the place of this program; to be called outside of its loops."""
        sample, block, program = (pl.program_id(axis) for axis in range(3))
        features, real = span(block * self.columns, self.columns, self.shape[2])
        return Place(self, sample, program, features, real)


@dataclass(frozen=True)
class Place:
    """Part of an array that a program strides over.

    Attributes:
        over: See `Columns`.
        sample: Number of the sample.
        program: Number of the program among those of the same sample and features.
        features: Indices of features.
        real: Features that there are.
    """

    over: Columns
    sample: Any
    program: Any
    features: Any
    real: Array

    @property
    def tiles(self) -> Any:
        """Number of tiles of this program."""
        programs = self.over.grid[2]
        return (self.over.tiles - self.program + programs - 1) // programs

    @property
    def partial(self) -> tuple[Any, Any, Any]:
        """Index of the results of this program in an array [samples, programs, features]."""
        return self.sample, self.program, self.features

    def tile(self, i: Any) -> tuple[tuple[Any, Any, Any], Array, Array]:
        """Return the index of the tile number `i` of this program, its mask, and which positions there are."""
        over = self.over
        these, live = span((self.program + i * over.grid[2]) * over.rows, over.rows, over.shape[1])
        return (self.sample, these, self.features), live[:, None] & self.real[None, :], live


def column_statistics(launch: Launch, x: Array) -> tuple[Array, Array]:
    """Return means and variances over positions, [samples, features]."""
    over = Columns(x.shape, launch.multiprocessors)
    samples, positions, features = x.shape

    def kernel(x_ref: Any, mean_ref: Any, square_ref: Any, count_ref: Any) -> None:
        place = over.place()

        def tile(i: Any, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            count, mean, square = sums
            index, mask, live = place.tile(i)
            values, here = load(x_ref, index, mask), live.astype(jnp.float32).sum()
            middle = values.sum(0) / here
            centered, apart = jnp.where(mask, values - middle[None, :], 0), middle - mean
            both = count + here
            square = square + lax.square(centered).sum(0) + lax.square(apart) * (count * here / both)
            return both, mean + apart * (here / both), square

        nothing = jnp.zeros(over.columns, jnp.float32)
        count, mean, square = lax.fori_loop(0, place.tiles, tile, (jnp.float32(0), nothing, nothing))
        for ref, value in ((mean_ref, mean), (square_ref, square), (count_ref, nothing + count)):
            store(ref, place.partial, value, place.real)

    outputs = (floats(samples, over.grid[2], features),) * 3
    call = launch(kernel, outputs, over.grid, elements=over.rows * over.columns, stages=3)
    means, squares, counts = call(x)
    mean = (counts * means).sum(1) / positions
    return mean, (squares + counts * lax.square(means - mean[:, None])).sum(1) / positions


def column_sums(launch: Launch, x: Array, mean: Array, dy: Array) -> tuple[Array, Array]:
    """Return the sums over positions of `dy` and of `dy * (x - mean)`, [samples, features]."""
    over = Columns(x.shape, launch.multiprocessors)
    samples, _, features = x.shape

    def kernel(x_ref: Any, mean_ref: Any, dy_ref: Any, sum_ref: Any, along_ref: Any) -> None:
        place = over.place()
        middle = load(mean_ref, (place.sample, place.features), place.real)[None, :]

        def tile(i: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
            index, mask, _ = place.tile(i)
            dy, values = (load(ref, index, mask) for ref in (dy_ref, x_ref))
            return sums[0] + dy.sum(0), sums[1] + (dy * (values - middle)).sum(0)

        nothing = jnp.zeros(over.columns, jnp.float32)
        sums = lax.fori_loop(0, place.tiles, tile, (nothing, nothing))
        for ref, value in zip((sum_ref, along_ref), sums, strict=True):
            store(ref, place.partial, value, place.real)

    outputs = (floats(samples, over.grid[2], features),) * 2
    call = launch(kernel, outputs, over.grid, elements=over.rows * over.columns, stages=3)
    of_dy, along = call(x, mean, dy)
    return of_dy.sum(1), along.sum(1)


def pooled(values: Array, pool: int) -> Array:
    """Average neighbouring features, and repeat the averages."""
    if pool == 1:
        return values
    return jnp.repeat(values.reshape(len(values), -1, pool).mean(-1), pool, axis=-1)


def row_tile(x: Array) -> tuple[int, int]:
    """Return the rows and the columns of a tile of whole rows; sizes in Triton are powers of two."""
    columns = power_of_two(x.shape[1])
    return max(1, min(32, TILE // columns)), columns


def power_of_two(n: int) -> int:
    """Return the least power of two that is not below `n`."""
    return 1 << max(0, n - 1).bit_length()


def span(first: Any, size: int, limit: int) -> tuple[Any, Array]:
    """Return the indices from `first`, and which of them are below the limit; the slice may end behind an array."""
    return pl.ds(jnp.asarray(first, jnp.int32), size), first + jnp.arange(size) < limit


def load(ref: Any, index: tuple[Any, ...], mask: Array) -> Array:
    """Read a tile in float32, 0 outside the mask."""
    return triton.load(ref.at[index], mask=mask, other=0).astype(jnp.float32)


def store(ref: Any, index: tuple[Any, ...], value: Array, mask: Array) -> None:
    """Write a tile in the dtype of the array."""
    triton.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def like(x: Array) -> jax.ShapeDtypeStruct:
    """Return the shape and the dtype of an array."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return a shape, in float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)
