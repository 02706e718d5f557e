"""Recurrent cells with a norm inside, for NNX, and the layer that runs them over sequences."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike

from normlab import functional as F
from normlab._core.checks import check_flag
from normlab.functional.recurrent.cell_norm import AnyCellNorm, resolve
from normlab.functional.recurrent.cells import Carry, Cell
from normlab.functional.recurrent.unroll import check_inputs, check_sequences, check_steps, flip
from normlab.nnx._norm import NO_METADATA, Initializer, Metadata, read, state_variables, write, zeros

STATISTICS = ("mean", "var", "step")
Rngs = nnx.Rngs | nnx.RngStream
Activation = Callable[[jax.Array], jax.Array]
LECUN_NORMAL, ORTHOGONAL = nnx.initializers.lecun_normal(), nnx.initializers.orthogonal()


class PathNorm(nnx.Module):
    """Parameters and state of what one norm inside a cell normalizes.

    Attributes:
        scale: Parameter of shape [features].
        bias: Parameter of the same shape, or `None`.
        stateful: Whether there are running statistics.
        mean: Running mean, an `nnx.BatchStat` of shape [max_steps, features]; only where there are.
        var: Running variance, likewise.
        step: Updates of each row so far, where `momentum` is a function or `None`.
    """

    def __init__(self, norm: F.CellNorm, features: int, *, use_bias: bool, param_dtype: DTypeLike) -> None:
        self.stateful = norm.stateful
        self.scale = nnx.Param(jnp.full(features, norm.initial_scale, param_dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros(features, param_dtype)) if use_bias else None)
        for name, value in F.initial_rows(norm, features).by_name().items() if norm.stateful else ():
            setattr(self, name, nnx.BatchStat(value))

    def state(self) -> dict[str, nnx.Variable[jax.Array]]:
        """Return the variables of the running statistics by name; of a norm without them, none."""
        return state_variables(self, STATISTICS if self.stateful else (), optional=("step",))


class NormalizedCell(nnx.RNNCellBase):
    """Base of the cells: an input path, a recurrent path and their norms.

    Flax's `promote_dtype` and the deprecated `keep_rngs` are not taken.
    """

    _cell: ClassVar[Cell]
    _inputs: ClassVar[tuple[str, ...]] = ("dense_i",)
    _recurrent: ClassVar[tuple[str, ...]] = ("dense_h",)
    _biased: ClassVar[tuple[str, ...]] = _inputs

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activations: F.Activations,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        carry_init: Initializer | None,
        norm: AnyCellNorm,
        use_running_average: bool | None,
    ) -> None:
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dtype, self.param_dtype = dtype, param_dtype
        self.carry_init = carry_init
        self.activations = activations
        self.norm: F.CellNorm = resolve(norm)
        check_flag("use_running_average", use_running_average)
        self.use_running_average = use_running_average
        for path in self._paths:
            features = hidden_features * (1 if path == "c" else len(self._cell.gates))
            setattr(self, f"norm_{path}", PathNorm(self.norm, features, use_bias=path == "c", param_dtype=param_dtype))

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """Take one step.

        Args:
            carry: State, from `initialize_carry` or the step before.
            inputs: Shape [*batch, inputs].

        Returns:
            The new state, and the output [*batch, features].
        """
        if self._trains:
            check_steps(self.norm)
        carry, outputs = self.unroll(carry, jnp.asarray(inputs)[None])
        return carry, outputs[0]

    def unroll(
        self, carry: Carry, inputs: jax.Array, *, seq_lengths: ArrayLike | None = None, unroll: int = 1
    ) -> tuple[Carry, jax.Array]:
        """Take all steps of sequences [time, *batch, inputs]; see `normlab.functional.unroll`."""
        made: dict[F.Path, PathNorm] = {path: getattr(self, f"norm_{path}") for path in self._paths}
        inputs = jnp.asarray(inputs)
        check_inputs(self.norm, inputs)
        with jax.numpy_dtype_promotion("standard"):
            inputs, *dense = promote_dtype((inputs, *self._dense()), dtype=self.dtype)
        train = self._trains
        states = {path: norm.state() for path, norm in made.items()}
        carry, outputs, running = F.unroll(
            self._cell,
            self.norm,
            F.CellParameters(
                *dense,
                scales={path: read(norm.scale) for path, norm in made.items()},
                biases={path: read(norm.bias) for path, norm in made.items() if norm.bias is not None},
            ),
            inputs,
            carry,
            train=train,
            seq_lengths=seq_lengths,
            running={
                path: F.RunningStatistics.named({name: read(variable) for name, variable in state.items()})
                for path, state in states.items()
                if state
            },
            activations=self.activations,
            unroll=unroll,
        )
        if train:
            for path, state in states.items():
                for name, value in running[path].by_name().items():
                    write(state[name], value)
        return carry, outputs

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: Rngs | None = None,
        carry_init: Initializer | None = None,
        seq_lengths: ArrayLike | None = None,
    ) -> Carry:
        """Return the state before the first step.

        Args:
            input_shape: Shape of the inputs of one step, [*batch, inputs].
            rngs: Random streams for the initializer; `carry` is used. Not needed for zeros.
            carry_init: Initializer of the state; that of the constructor, or zeros, unless given.
            seq_lengths: After how many steps each sequence ends, shape [*batch]: only for norms with batch statistics
                under Flax's own `nnx.RNN`, which does not tell its cell.
        """
        make = carry_init or self.carry_init or zeros
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs or nnx.RngStream(0, tag="carry")
        shape = (*input_shape[:-1], self.hidden_features)
        return F.initial_carry(self.norm, self._initial(lambda: make(stream(), shape, self.param_dtype)), seq_lengths)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode; called by `nnx.view`, and read by `nnx.view_info`, which expects this indentation.

        Args:
          use_running_average: True at evaluation, False in training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input that are no batch: the last."""
        return 1

    @property
    def _paths(self) -> list[F.Path]:
        """Paths to normalize."""
        return [path for path in self.norm.paths if path in self._cell.paths]

    @property
    def _trains(self) -> bool:
        """True if statistics are those of the batch and running statistics are updated."""
        check_flag("use_running_average", self.use_running_average)
        if self.norm.stateful and self.use_running_average is None:
            raise ValueError("Expected `use_running_average`, got None. Call `train()` or `eval()`.")
        return self.norm.stateful and not self.use_running_average

    def _dense(self) -> tuple[jax.Array, ...]:
        """Kernels of both paths, the gates' side by side, and the bias of their sum."""
        inputs, recurrent, biased = (
            [getattr(self, gate) for gate in gates] for gates in (self._inputs, self._recurrent, self._biased)
        )
        kernels = (jnp.concatenate([read(dense.kernel) for dense in path], -1) for path in (inputs, recurrent))
        return *kernels, jnp.concatenate([read(dense.bias) for dense in biased])

    def _initial(self, make: Callable[[], jax.Array]) -> Carry:
        return make()


class SimpleCell(NormalizedCell):
    """Simple RNN with a norm inside; see `normlab.functional.SIMPLE`.

    Flax's arguments, then our own; Flax's `dense_i` and `dense_h`, and the norms `norm_x` and `norm_h`.
    """

    _cell = F.SIMPLE

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: DTypeLike | None = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: Initializer | None = None,
        residual: bool = False,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = LECUN_NORMAL,
        recurrent_kernel_init: Initializer = ORTHOGONAL,
        bias_init: Initializer = zeros,
        norm: AnyCellNorm = "none",
        use_running_average: bool | None = False,
        rngs: nnx.Rngs,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            in_features: Width of the inputs.
            hidden_features: Width of the state.
            dtype: Dtype of the computation. Statistics are in float32 or wider.
            param_dtype: Dtype of the parameters and the initial state.
            carry_init: Initializer of the state; zeros unless given.
            residual: Whether the old state is added inside the nonlinearity.
            activation_fn: Nonlinearity.
            kernel_init: Initializer of the input kernel.
            recurrent_kernel_init: Initializer of the recurrent kernel.
            bias_init: Initializer of the bias.
            norm: A norm with a place in cells; see `normlab.functional.CELL_NORMS`.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            rngs: Random streams; `params` is used.
            kernel_metadata: Metadata of the input kernel, such as sharding.
            recurrent_kernel_metadata: Metadata of the recurrent kernel.
            bias_metadata: Metadata of the bias.
        """
        super().__init__(
            in_features,
            hidden_features,
            activations=F.Activations(state=activation_fn, residual=residual),
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            norm=norm,
            use_running_average=use_running_average,
        )
        self.dense_h = nnx.Linear(
            hidden_features,
            hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            param_dtype=param_dtype,
            kernel_metadata=recurrent_kernel_metadata,
            rngs=rngs,
        )
        self.dense_i = nnx.Linear(
            in_features,
            hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )


class LSTMCell(NormalizedCell):
    """LSTM with a norm inside; see `normlab.functional.LSTM`.

    Flax's arguments, then our own; Flax's `ii`, `if_`, `ig`, `io`, `hi`, `hf`, `hg` and `ho`, and the norms `norm_x`,
    `norm_h` and `norm_c`. The norm of the cell state stands where it feeds the output, never in its update.
    """

    _cell = F.LSTM
    _inputs = ("ii", "if_", "ig", "io")
    _recurrent = ("hi", "hf", "hg", "ho")
    _biased = _recurrent

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = LECUN_NORMAL,
        recurrent_kernel_init: Initializer = ORTHOGONAL,
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: Initializer | None = None,
        norm: AnyCellNorm = "none",
        use_running_average: bool | None = False,
        rngs: nnx.Rngs,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            in_features: Width of the inputs.
            hidden_features: Width of the state.
            gate_fn: Nonlinearity of the gates.
            activation_fn: Nonlinearity of new content and of the output.
            kernel_init: Initializer of the input kernels, gate by gate.
            recurrent_kernel_init: Initializer of the recurrent kernels, gate by gate.
            bias_init: Initializer of the biases.
            dtype: Dtype of the computation; `None` promotes inputs and parameters. Statistics are in float32 or
                wider.
            param_dtype: Dtype of the parameters and the initial state.
            carry_init: Initializer of the state; zeros unless given.
            norm: A norm with a place in cells; see `normlab.functional.CELL_NORMS`.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            rngs: Random streams; `params` is used.
            kernel_metadata: Metadata of the input kernels, such as sharding.
            recurrent_kernel_metadata: Metadata of the recurrent kernels.
            bias_metadata: Metadata of the biases.
        """
        super().__init__(
            in_features,
            hidden_features,
            activations=F.Activations(gate_fn, activation_fn),
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            norm=norm,
            use_running_average=use_running_average,
        )
        for gate in self._inputs:
            dense = nnx.Linear(
                in_features,
                hidden_features,
                use_bias=False,
                kernel_init=kernel_init,
                param_dtype=param_dtype,
                kernel_metadata=kernel_metadata,
                rngs=rngs,
            )
            setattr(self, gate, dense)
        for gate in self._recurrent:
            dense = nnx.Linear(
                hidden_features,
                hidden_features,
                kernel_init=recurrent_kernel_init,
                bias_init=bias_init,
                param_dtype=param_dtype,
                kernel_metadata=recurrent_kernel_metadata,
                bias_metadata=bias_metadata,
                rngs=rngs,
            )
            setattr(self, gate, dense)

    def _initial(self, make: Callable[[], jax.Array]) -> Carry:
        return make(), make()


class GRUCell(NormalizedCell):
    """GRU with a norm inside; see `normlab.functional.GRU`.

    Flax's arguments, then our own; Flax's `dense_i` and `dense_h` (which has no bias in NNX), and the norms `norm_x`
    and `norm_h`. Layer norm takes the two gates together, and the candidate by itself (Ba et al., 2016, whose z is
    1 - z here, as in Flax).
    """

    _cell = F.GRU

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = LECUN_NORMAL,
        recurrent_kernel_init: Initializer = ORTHOGONAL,
        bias_init: Initializer = zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        carry_init: Initializer | None = None,
        norm: AnyCellNorm = "none",
        use_running_average: bool | None = False,
        rngs: nnx.Rngs,
        kernel_metadata: Metadata = NO_METADATA,
        recurrent_kernel_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            in_features: Width of the inputs.
            hidden_features: Width of the state.
            gate_fn: Nonlinearity of the gates.
            activation_fn: Nonlinearity of the candidate.
            kernel_init: Initializer of the input kernel, for all gates.
            recurrent_kernel_init: Initializer of the recurrent kernel, for all gates.
            bias_init: Initializer of the bias.
            dtype: Dtype of the computation; `None` promotes inputs and parameters. Statistics are in float32 or
                wider.
            param_dtype: Dtype of the parameters and the initial state.
            carry_init: Initializer of the state; zeros unless given.
            norm: A norm with a place in cells; see `normlab.functional.CELL_NORMS`.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            rngs: Random streams; `params` is used.
            kernel_metadata: Metadata of the input kernel, such as sharding.
            recurrent_kernel_metadata: Metadata of the recurrent kernel.
            bias_metadata: Metadata of the bias.
        """
        super().__init__(
            in_features,
            hidden_features,
            activations=F.Activations(gate_fn, activation_fn),
            dtype=dtype,
            param_dtype=param_dtype,
            carry_init=carry_init,
            norm=norm,
            use_running_average=use_running_average,
        )
        self.dense_i = nnx.Linear(
            in_features,
            3 * hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            param_dtype=param_dtype,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self.dense_h = nnx.Linear(
            hidden_features,
            3 * hidden_features,
            use_bias=False,
            kernel_init=recurrent_kernel_init,
            param_dtype=param_dtype,
            kernel_metadata=recurrent_kernel_metadata,
            rngs=rngs,
        )


class RNN(nnx.RNN):
    """Run a cell over sequences; an `nnx.RNN` with Flax's arguments, that knows the cells here.

    With them it takes the input path of all time steps in one matrix product; sequences that have finished enter no
    statistic, keep their state, and have outputs of zero; and running statistics are moved once a call. `state_axes`
    and `broadcast_rngs` are not needed, and without effect. Other cells run as in Flax.
    """

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Rngs | None = None,
    ) -> Any:
        """Run the cell; arguments that are given win over the attributes.

        Args:
            inputs: Shape [*batch, time, inputs], or [time, *batch, inputs] with `time_major`.
            initial_carry: State before the first step; the cell's `initialize_carry` unless given.
            seq_lengths: Steps of each sequence, whole numbers, shape [*batch]; what lies behind is never read.
            return_carry: Whether the state after the last step of each sequence is returned, too.
            time_major: Whether time is the first axis, of inputs and outputs.
            reverse: Whether sequences run from their end to their beginning.
            keep_order: Whether outputs are then put back into the order of the inputs.
            rngs: Random streams for `initialize_carry`.

        Returns:
            Outputs, of the shape of the inputs with `hidden_features` last; or the state and the outputs.
        """
        if not isinstance(self.cell, NormalizedCell):
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths if seq_lengths is None else jnp.asarray(seq_lengths),
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        return_carry, time_major, reverse, keep_order = (
            attribute if given is None else given
            for attribute, given in (
                (self.return_carry, return_carry),
                (self.time_major, time_major),
                (self.reverse, reverse),
                (self.keep_order, keep_order),
            )
        )
        flags = {"return_carry": return_carry, "time_major": time_major, "reverse": reverse, "keep_order": keep_order}
        for name, flag in flags.items():
            check_flag(name, flag)
        x = check_sequences(inputs, seq_lengths, time_major)
        if reverse:
            x = flip(x, seq_lengths)
        if initial_carry is None:
            initial_carry = self.cell.initialize_carry(x.shape[1:], self.rngs if rngs is None else rngs)
        carry, y = self.cell.unroll(initial_carry, x, seq_lengths=seq_lengths, unroll=self.unroll)
        if reverse and keep_order:
            y = flip(y, seq_lengths)
        y = y if time_major else jnp.moveaxis(y, 0, -2)
        return (carry, y) if return_carry else y
