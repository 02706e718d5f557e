"""Recurrent cells with a norm inside, for Linen, and the layer that runs them over sequences."""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.typing import ArrayLike, DTypeLike

from normlab import functional as F
from normlab._core.checks import check_flag, check_flags
from normlab.functional.recurrent.cell_norm import AnyCellNorm, resolve
from normlab.functional.recurrent.cells import Carry, Cell
from normlab.functional.recurrent.unroll import check_inputs, check_sequences, check_steps, flip
from normlab.linen._norm import Initializer, state_variables

Activation = Callable[[jax.Array], jax.Array]


class _Dense(nn.Module):
    """Kernel and perhaps bias of one gate."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features), self.param_dtype)
        if self.bias_init is None:
            return kernel, None
        return kernel, self.param("bias", self.bias_init, (self.features,), self.param_dtype)


class _PathNorm(nn.Module):
    """Scale, perhaps bias, and running statistics of what one norm inside a cell normalizes."""

    norm: F.CellNorm
    features: int
    use_bias: bool
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, train: bool) -> tuple[jax.Array, jax.Array | None, dict[str, nn.Variable]]:
        scale_init = nn.initializers.constant(self.norm.initial_scale)
        scale = self.param("scale", scale_init, (self.features,), self.param_dtype)
        bias = (
            self.param("bias", nn.initializers.zeros_init(), (self.features,), self.param_dtype)
            if self.use_bias
            else None
        )
        if not self.norm.stateful:
            return scale, bias, {}
        needed = F.initial_rows(self.norm, self.features).by_name()
        return (
            scale,
            bias,
            state_variables(
                self, {"batch_stats": [*needed]}, lambda _: needed, () if train and "step" in needed else ("step",)
            ),
        )


class NormalizedCell(nn.RNNCellBase):
    """Base of the cells; `SimpleCell`, `LSTMCell` and `GRUCell` have the fields."""

    _cell: ClassVar[Cell]
    _input_gates: ClassVar[tuple[str, ...]]
    _recurrent_gates: ClassVar[tuple[str, ...]]
    _biased: ClassVar[frozenset[str]]

    if TYPE_CHECKING:  # fields of a base would come first
        features: int
        gate_fn: Activation
        activation_fn: Activation
        kernel_init: Initializer
        recurrent_kernel_init: Initializer
        bias_init: Initializer
        dtype: DTypeLike | None
        param_dtype: DTypeLike
        carry_init: Initializer
        norm: AnyCellNorm
        use_running_average: bool | None

    def setup(self) -> None:
        """Make the norms: outside of any loop over time, so that Flax's `nn.RNN` can carry their statistics."""
        norm = self.resolved
        for path in norm.paths:
            if path in self._cell.paths:
                features = self.features if path == "c" else self.features * len(self._cell.gates)
                setattr(self, f"norm_{path}", _PathNorm(norm, features, path == "c", self.param_dtype))

    @property
    def resolved(self) -> F.CellNorm:
        """The norm."""
        return resolve(self.norm)

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """Take one step.

        Args:
            carry: State, from `initialize_carry` or the step before.
            inputs: Shape [*batch, inputs].

        Returns:
            The new state, and the output [*batch, features].
        """
        if self._trains:
            check_steps(self.resolved)
        carry, outputs = self.unroll(carry, jnp.asarray(inputs)[None])
        return carry, outputs[0]

    def unroll(
        self,
        carry: Carry,
        inputs: jax.Array,
        *,
        seq_lengths: ArrayLike | None = None,
        nudges: jax.Array | None = None,
        unroll: int = 1,
    ) -> tuple[Carry, jax.Array]:
        """Take all steps of sequences [time, *batch, inputs]; see `normlab.functional.unroll`."""
        norm, train = self.resolved, self._trains
        inputs = jnp.asarray(inputs)
        check_inputs(norm, inputs)
        kernels, recurrent = self._kernels(jnp.shape(inputs)[-1])
        with jax.numpy_dtype_promotion("standard"):
            inputs, *dense = promote_dtype(inputs, *kernels, *recurrent, dtype=self.dtype)
        paths = [path for path in norm.paths if path in self._cell.paths]
        made = {path: getattr(self, f"norm_{path}")(train) for path in paths}
        parameters = F.CellParameters(
            *dense,
            scales={path: scale for path, (scale, _, _) in made.items()},
            biases={path: bias for path, (_, bias, _) in made.items() if bias is not None},
        )
        states = {path: state for path, (_, _, state) in made.items()}
        running = {
            path: F.RunningStatistics.named({name: variable.value for name, variable in state.items()})
            for path, state in states.items()
            if state
        }
        carry, outputs, running = F.unroll(
            self._cell,
            norm,
            parameters,
            inputs,
            carry,
            train=train,
            seq_lengths=seq_lengths,
            running=running,
            activations=self._activations,
            nudges=nudges,
            unroll=unroll,
        )
        if train:
            for path, state in states.items():
                for name, variable in state.items():
                    variable.value = running[path].by_name()[name]
        return carry, outputs

    def initialize_carry(
        self, rng: jax.Array, input_shape: tuple[int, ...], seq_lengths: ArrayLike | None = None
    ) -> Carry:
        """Return the state before the first step.

        Args:
            rng: For `carry_init`.
            input_shape: Shape of the inputs of one step, [*batch, inputs].
            seq_lengths: After how many steps each sequence ends, shape [*batch]: only for norms with batch statistics
                under Flax's own `nn.RNN`, which does not tell its cell.
        """
        if self.scope is not None:  # make the running statistics here, outside of any loop
            for path in self.resolved.paths:
                if path in self._cell.paths:
                    getattr(self, f"norm_{path}")(self._trains)
        return F.initial_carry(self.resolved, self._initial(rng, (*input_shape[:-1], self.features)), seq_lengths)

    @property
    def num_feature_axes(self) -> int:
        """Axes of an input that are no batch: the last."""
        return 1

    def _initial(self, rng: jax.Array, shape: tuple[int, ...]) -> Carry:
        return self.carry_init(rng, shape, self.param_dtype)

    @property
    def _activations(self) -> F.Activations:
        return F.Activations(self.gate_fn, self.activation_fn)

    @property
    def _trains(self) -> bool:
        """True if statistics are those of the batch and running statistics are updated."""
        check_flags(self, "use_running_average")
        if not self.resolved.stateful:
            return False
        if self.use_running_average is None:
            raise ValueError(
                f"Expected `use_running_average` for a cell with norm {str(self.norm)!r}, got None. Pass False to "
                "train, True to evaluate."
            )
        return not self.use_running_average and not self.is_initializing()

    @nn.compact
    def _kernels(self, inputs: int) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]:
        """Kernels of both paths, the bias of their sum, and that of the recurrent path by itself."""
        kernels, biases = self._joined(self._input_gates, inputs, self.kernel_init)
        recurrent, recurrent_biases = self._joined(self._recurrent_gates, self.features, self.recurrent_kernel_init)
        if biases is None:
            assert recurrent_biases is not None  # one of the paths has a bias
            return (kernels, recurrent), (recurrent_biases, None)
        return (kernels, recurrent), (biases, recurrent_biases)

    def _joined(
        self, gates: tuple[str, ...], inputs: int, kernel_init: Initializer
    ) -> tuple[jax.Array, jax.Array | None]:
        """The gates' kernels side by side, and their biases, zeros where a gate has none; `None` where none has."""
        made = [
            _Dense(
                self.features,
                kernel_init,
                self.bias_init if gate in self._biased else None,
                self.param_dtype,
                name=gate,
            )(inputs)
            for gate in gates
        ]
        kernels = jnp.concatenate([kernel for kernel, _ in made], -1)
        if not self._biased & set(gates):
            return kernels, None
        given = [bias for _, bias in made if bias is not None]
        return kernels, jnp.concatenate([jnp.zeros_like(given[0]) if bias is None else bias for _, bias in made])


class SimpleCell(NormalizedCell):
    """Simple RNN with a norm inside; see `normlab.functional.SIMPLE`.

    Flax's fields in Flax's order, then our own; Flax's parameters, and those of the norms, `norm_x` and `norm_h`, whose
    running statistics are in `batch_stats`, a row for each time step.

    Attributes:
        features: Width of the state.
        activation_fn: Nonlinearity.
        kernel_init: Initializer of the input kernel.
        recurrent_kernel_init: Initializer of the recurrent kernel.
        bias_init: Initializer of the bias.
        dtype: Dtype of the computation; `None` promotes inputs and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of the parameters and the initial state.
        carry_init: Initializer of the state.
        residual: Whether the old state is added inside the nonlinearity.
        norm: A norm with a place in cells, by name, as a string with options, or as a value; see
            `normlab.functional.CELL_NORMS`.
        use_running_average: True at evaluation, False in training; needed for norms with batch statistics.
    """

    features: int
    activation_fn: Activation = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    carry_init: Initializer = nn.initializers.zeros_init()
    residual: bool = False
    norm: AnyCellNorm = "none"
    use_running_average: bool | None = None

    _cell: ClassVar[Cell] = F.SIMPLE
    _input_gates: ClassVar[tuple[str, ...]] = ("i",)
    _recurrent_gates: ClassVar[tuple[str, ...]] = ("h",)
    _biased: ClassVar[frozenset[str]] = frozenset({"i"})

    @property
    def _activations(self) -> F.Activations:
        return F.Activations(state=self.activation_fn, residual=self.residual)


class LSTMCell(NormalizedCell):
    """LSTM with a norm inside; see `normlab.functional.LSTM`.

    Flax's fields in Flax's order, then our own; Flax's parameters, and those of the norms, `norm_x`, `norm_h` and
    `norm_c`, whose running statistics are in `batch_stats`, a row for each time step. The norm of the cell state stands
    where it feeds the output, never in its update.

    Attributes:
        features: Width of the state.
        gate_fn: Nonlinearity of the gates.
        activation_fn: Nonlinearity of new content and of the output.
        kernel_init: Initializer of the input kernels, gate by gate.
        recurrent_kernel_init: Initializer of the recurrent kernels, gate by gate.
        bias_init: Initializer of the biases.
        dtype: Dtype of the computation; `None` promotes inputs and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of the parameters and the initial state.
        carry_init: Initializer of the state.
        norm: A norm with a place in cells, by name, as a string with options, or as a value; see
            `normlab.functional.CELL_NORMS`.
        use_running_average: True at evaluation, False in training; needed for norms with batch statistics.
    """

    features: int
    gate_fn: Activation = nn.sigmoid
    activation_fn: Activation = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    carry_init: Initializer = nn.initializers.zeros_init()
    norm: AnyCellNorm = "none"
    use_running_average: bool | None = None

    _cell: ClassVar[Cell] = F.LSTM
    _input_gates: ClassVar[tuple[str, ...]] = ("ii", "if", "ig", "io")
    _recurrent_gates: ClassVar[tuple[str, ...]] = ("hi", "hf", "hg", "ho")
    _biased: ClassVar[frozenset[str]] = frozenset(_recurrent_gates)

    def _initial(self, rng: jax.Array, shape: tuple[int, ...]) -> Carry:
        c, h = (self.carry_init(key, shape, self.param_dtype) for key in jax.random.split(rng))
        return c, h


class GRUCell(NormalizedCell):
    """GRU with a norm inside; see `normlab.functional.GRU`.

    Flax's fields in Flax's order, then our own; Flax's parameters, and those of the norms, `norm_x` and `norm_h`, whose
    running statistics are in `batch_stats`, a row for each time step. Layer norm takes the two gates together, and the
    candidate by itself (Ba et al., 2016, whose z is 1 - z here, as in Flax).

    Attributes:
        features: Width of the state.
        gate_fn: Nonlinearity of the gates.
        activation_fn: Nonlinearity of the candidate.
        kernel_init: Initializer of the input kernels, gate by gate.
        recurrent_kernel_init: Initializer of the recurrent kernels, gate by gate.
        bias_init: Initializer of the biases.
        dtype: Dtype of the computation; `None` promotes inputs and parameters. Statistics are in float32 or wider.
        param_dtype: Dtype of the parameters and the initial state.
        carry_init: Initializer of the state.
        norm: A norm with a place in cells, by name, as a string with options, or as a value; see
            `normlab.functional.CELL_NORMS`.
        use_running_average: True at evaluation, False in training; needed for norms with batch statistics.
    """

    features: int
    gate_fn: Activation = nn.sigmoid
    activation_fn: Activation = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    carry_init: Initializer = nn.initializers.zeros_init()
    norm: AnyCellNorm = "none"
    use_running_average: bool | None = None

    _cell: ClassVar[Cell] = F.GRU
    _input_gates: ClassVar[tuple[str, ...]] = ("ir", "iz", "in")
    _recurrent_gates: ClassVar[tuple[str, ...]] = ("hr", "hz", "hn")
    _biased: ClassVar[frozenset[str]] = frozenset({"ir", "iz", "in", "hn"})


class RNN(nn.RNN):
    """Run a cell over sequences; a `flax.linen.RNN` with Flax's fields, that knows the cells here.

    With them it takes the input path of all time steps in one matrix product; sequences that have finished enter no
    statistic, keep their state, and have outputs of zero; and running statistics are moved once a call. Flax's options
    for collections (`variable_axes` and others) are not needed, and without effect. Other cells run as in Flax.

    A collection `perturbations` with `hidden`, shape [time, *batch, features], is added to the hidden state that each
    step hands on: the gradient with respect to zeros there is that of the loss with respect to every hidden state.
    """

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> jax.Array | tuple[Carry, jax.Array]:
        """Run the cell; arguments that are given win over the fields.

        Args:
            inputs: Shape [*batch, time, inputs], or [time, *batch, inputs] with `time_major`.
            initial_carry: State before the first step; the cell's `initialize_carry` unless given.
            init_key: For `initialize_carry`; `jax.random.key(0)` unless given.
            seq_lengths: Steps of each sequence, whole numbers, shape [*batch]; what lies behind is never read.
            return_carry: Whether the state after the last step of each sequence is returned, too.
            time_major: Whether time is the first axis, of inputs and outputs.
            reverse: Whether sequences run from their end to their beginning.
            keep_order: Whether outputs are then put back into the order of the inputs.

        Returns:
            Outputs, of the shape of the inputs with `features` last; or the state and the outputs.
        """
        if not isinstance(self.cell, NormalizedCell):
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                init_key=init_key,
                seq_lengths=seq_lengths if seq_lengths is None else jnp.asarray(seq_lengths),
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
            )
        return_carry, time_major, reverse, keep_order = (
            field if given is None else given
            for field, given in (
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
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, x.shape[1:])
        nudges = self.get_variable("perturbations", "hidden")
        carry, y = self.cell.unroll(initial_carry, x, seq_lengths=seq_lengths, nudges=nudges, unroll=self.unroll)
        if reverse and keep_order:
            y = flip(y, seq_lengths)
        y = y if time_major else jnp.moveaxis(y, 0, -2)
        return (carry, y) if return_carry else y
