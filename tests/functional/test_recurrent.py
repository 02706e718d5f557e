"""Recurrent cells with norms: their numbers and derivatives, masks, running statistics, and what drives them."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import linen, nnx, norms
from normlab.functional import StatisticsError
from tests.support import reference

pytestmark = pytest.mark.usefixtures("strict")

BATCH, TIME, INPUTS, WIDTH = 5, 6, 3, 4
LENGTHS = np.array([6, 1, 3, 0, 5])  # one sequence is empty, and only one gets to the last step
FULL = np.full(BATCH, TIME)
CELLS = {"simple": linen.SimpleCell, "lstm": linen.LSTMCell, "gru": linen.GRUCell}
WITHIN = ("none", "layer", "layer_per_gate:epsilon=1e-5", "rms", "group:num_groups=2")
ACROSS = (
    "batch_step:max_steps=4,momentum=0.9",  # two steps fewer than there are
    "batch_shared:momentum=0.9,unbiased_running_var=True,epsilon=1e-5",
    "batch_input:momentum=0.9",
    "batch_input:over=step,max_steps=4,momentum=0.9",
)
NORMS = WITHIN + ACROSS
KEY = jax.random.key(0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
each_cell = pytest.mark.parametrize("cell", CELLS)
each_norm = pytest.mark.parametrize("norm", NORMS)
each_batch_norm = pytest.mark.parametrize("norm", ACROSS)
IN_TURNS = (*zip(itertools.cycle(CELLS), NORMS, strict=False), ("lstm", ACROSS[0]), ("gru", "layer"))
in_turns = pytest.mark.parametrize(("cell", "norm"), IN_TURNS)  # every norm and every cell, at a third of the cost
Tree = Any


@pytest.fixture
def x64(strict: None) -> Iterator[None]:
    """Compute in float64."""
    with jax.enable_x64(True):
        yield


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def network(cell: str, norm: str, train: bool = True, **options: Any) -> linen.RNN:
    """A cell of ours, driven by our RNN, which returns the last carry, too."""
    return linen.RNN(CELLS[cell](WIDTH, norm=norm, use_running_average=not train), return_carry=True, **options)


def state_of(cell: str, seed: int = 7, batch: int = BATCH) -> tuple[np.ndarray, ...]:
    """A state that is not zero: `(h,)`, or `(c, h)`."""
    return tuple(normal(2 if cell == "lstm" else 1, batch, WIDTH, seed=seed))


def carry_of(norm: str, state: tuple[Any, ...], step: Any = 0) -> Any:
    """A state in the form that a cell with this norm takes."""
    carry = state if len(state) == 2 else state[0]
    if not norms.get(norm).stateful:
        return carry
    return F.TimedCarry(carry, jnp.broadcast_to(jnp.asarray(step, jnp.int32), jnp.shape(state[0])[:-1]))


def state_in(carry: Any) -> tuple[Any, ...]:
    """Undo `carry_of`."""
    carry = carry.carry if isinstance(carry, F.TimedCarry) else carry
    return carry if isinstance(carry, tuple) else (carry,)


@functools.cache
def variables_of(cell: str, norm: str) -> Tree:
    """Random parameters and running statistics, in float64."""
    shapes = jax.eval_shape(network(cell, norm).init, KEY, jnp.ones((2, 2, INPUTS), jnp.float32))
    rng = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        positive = path[-1].key in ("scale", "var")
        return rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(size=leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def cast(tree: Tree, dtype: Any = jnp.float32) -> Tree:
    """Arrays of JAX of a dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def flat(variables: Tree) -> reference.Variables:
    """Variables of the cell by path, as the reference takes them."""
    flattened = {path[2:]: leaf for path, leaf in flatten_dict(variables).items()}
    return {"/".join(path): np.asarray(leaf, np.float64) for path, leaf in flattened.items()}


def expected(
    cell: str, norm: str, variables: Tree, x: Any, state: Any, lengths: Any = None, **options: Any
) -> tuple[tuple[np.ndarray, ...], reference.Variables]:
    """What the reference gives."""
    spec, state = norms.get(norm), tuple(np.asarray(part, np.float64) for part in state)
    return reference.recurrent(
        cell, spec.name, flat(variables), np.asarray(x, np.float64), state, lengths, **{**spec.options, **options}
    )


@functools.cache
def trained(cell: str, norm: str) -> Callable[..., Any]:
    """`(variables, x, state, lengths, weights) -> (outputs and last state, batch_stats), gradients`, compiled."""
    module = network(cell, norm)

    @jax.jit
    def run(variables: Tree, x: jax.Array, state: Any, lengths: Any, weights: Any) -> Any:
        def loss(params: Tree, x: jax.Array, state: Any) -> Any:
            given = {**variables, "params": params}
            (carry, y), after = module.apply(
                given, x, initial_carry=carry_of(norm, state), seq_lengths=lengths, mutable=["batch_stats"]
            )
            found = (y, *state_in(carry))
            return sum(jnp.vdot(w, part) for w, part in zip(weights, found, strict=True)), (found, after)

        gradients, found = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(variables["params"], x, state)
        return found, gradients

    return run


def hidden_past(x: Any, lengths: Any = LENGTHS) -> np.ndarray:
    """Inputs with NaN past the end of each sequence."""
    live = np.arange(x.shape[1]) < np.asarray(lengths)[:, None]
    return np.where(live[..., None], x, np.nan)


def weights_of(cell: str) -> tuple[np.ndarray, ...]:
    """Random cotangents of the outputs and the last state."""
    return (normal(BATCH, TIME, WIDTH, seed=3), *state_of(cell, seed=4))


@each_norm
@each_cell
def test_values_and_gradients_in_float64_are_those_of_the_reference(x64: None, cell: str, norm: str) -> None:
    variables, x, state, weights = (
        variables_of(cell, norm),
        normal(BATCH, TIME, INPUTS),
        state_of(cell),
        weights_of(cell),
    )
    arguments = cast((variables, hidden_past(x), state), jnp.float64)
    (found, after), gradients = trained(cell, norm)(*arguments, jnp.asarray(LENGTHS), cast(weights, jnp.float64))
    y, statistics = expected(cell, norm, variables, x, state, LENGTHS)
    chex.assert_trees_all_close(found, y, rtol=1e-9, atol=1e-9)
    chex.assert_trees_all_close(flat(after), statistics, rtol=1e-6, atol=1e-6)

    at = (variables["params"], x, state)
    along = jax.tree.map(lambda a: np.random.default_rng(a.size).normal(size=a.shape), at)

    def loss(step: float) -> float:
        params, x, state = jax.tree.map(lambda a, d: a + step * d, at, along)
        y, _ = expected(cell, norm, {**variables, "params": params}, x, state, LENGTHS)
        return sum(float(np.vdot(w, part)) for w, part in zip(weights, y, strict=True))

    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradients, along)), strict=True))
    np.testing.assert_allclose(slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-7)
    assert not np.any(np.asarray(gradients[1])[np.arange(TIME) >= LENGTHS[:, None]])


INPUT_KINDS = {"1": (0.0, 1.0), "1e-3": (0.0, 1e-3), "300": (0.0, 300.0), "1e4 + 1": (1e4, 1.0)}


@in_turns
def test_values_in_float32_round_to_the_reference(cell: str, norm: str) -> None:
    variables, state, weights = cast((variables_of(cell, norm), state_of(cell), weights_of(cell)))
    for offset, size in INPUT_KINDS.values():
        x = jnp.asarray(offset + size * normal(BATCH, TIME, INPUTS), jnp.float32)
        (found, after), _ = trained(cell, norm)(variables, hidden_past(x), state, LENGTHS, weights)

        def in_float64(x: np.ndarray) -> Any:
            return expected(cell, norm, variables, x, state, LENGTHS)

        actual = (tuple(map(np.asarray, found)), {k: v.astype(np.float32) for k, v in flat(after).items()})
        reference.assert_rounds_to(actual, in_float64, x)


@in_turns
def test_gradients_in_float32_are_those_of_float64(cell: str, norm: str) -> None:
    """Up to what a roundoff in each input and parameter does to them.

    Where inputs are large, gradients of kernels are small differences of large numbers: there they are finite.
    """
    given = cast((variables_of(cell, norm), state_of(cell)))
    weights, rng = cast(weights_of(cell)), np.random.default_rng(5)
    for offset, size in INPUT_KINDS.values():
        x = jnp.asarray(offset + size * normal(BATCH, TIME, INPUTS), jnp.float32)
        _, found = trained(cell, norm)(given[0], x, given[1], FULL, weights)
        chex.assert_tree_all_finite(found)
        if offset + size > 1:
            continue
        with jax.enable_x64(True):
            at = cast((given[0], x, given[1]), jnp.float64)
            nearby = [
                jax.tree.map(lambda a: a * (1 + reference.UNIT * rng.choice([-1.0, 1.0], a.shape)), at)
                for _ in range(4)
            ]
            exact, *others = [trained(cell, norm)(*each, FULL, cast(weights, jnp.float64))[1] for each in (at, *nearby)]
        for path, want in flatten_gradients(exact).items():
            slack = max(np.abs(flatten_gradients(other)[path] - want).max() for other in others)
            error = np.abs(flatten_gradients(found)[path] - want).max()
            assert error <= 16 * (slack + 4 * reference.UNIT * np.abs(want).max()), (path, offset, size)


def flatten_gradients(tree: Tree) -> dict[str, np.ndarray]:
    """Gradients by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf, np.float64) for path, leaf in leaves}


@pytest.mark.parametrize(("norm", "dtype"), [*zip(NORMS, itertools.cycle(["bfloat16", "float16"]), strict=False)])
def test_half_precision_follows_flax_and_statistics_stay_float32(norm: str, dtype: str) -> None:
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), dtype)
    for cell in ("lstm", "gru"):
        for options in ({}, {"dtype": jnp.dtype(dtype)}, {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype)}):
            flax = nn.RNN({"lstm": nn.LSTMCell, "gru": nn.GRUCell}[cell](WIDTH, **options), return_carry=True)
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                theirs = jax.eval_shape(flax.init_with_output, KEY, x)[0]
            module = linen.RNN(CELLS[cell](WIDTH, norm=norm, use_running_average=False, **options), return_carry=True)
            (carry, y), after = jax.eval_shape(functools.partial(module.init_with_output, mutable=True), KEY, x)
            assert [part.dtype for part in (*state_in(carry), y)] == [part.dtype for part in jax.tree.leaves(theirs)]
            assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(after.get("batch_stats", {})))


FLAX = {"simple": nn.SimpleCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
SOME = np.array([6, 1, 3, 2, 5])  # Flax knows no empty sequence
DRIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "time_major": ({"time_major": True}, {}),
    "reverse": ({"reverse": True}, {"seq_lengths": SOME}),
    "keep_order": ({"reverse": True, "keep_order": True}, {"seq_lengths": SOME}),
    "keep_order, all": ({}, {"reverse": True, "keep_order": True, "return_carry": False}),
    "unroll": ({"unroll": 3}, {"seq_lengths": SOME, "time_major": True}),
    "time_major, reverse": ({"reverse": True, "keep_order": True, "time_major": True}, {"seq_lengths": SOME}),
}


def loosely() -> Any:
    """Let Flax promote as it does."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


def zero_past(result: Any, lengths: Any, time_major: bool) -> Any:
    """A network's result, with outputs past the end 0, as ours are."""
    *carry, y = result if isinstance(result, tuple) else (result,)
    if lengths is not None:
        live = np.arange(TIME) < np.asarray(lengths)[:, None]
        y = jnp.where(jnp.asarray(live.T if time_major else live)[..., None], y, 0)
    return (*carry, y)


@pytest.mark.parametrize("how", DRIVEN)
@each_cell
def test_without_a_norm_linen_is_flax(cell: str, how: str) -> None:
    options, call = DRIVEN[how]
    major = options.get("time_major") or call.get("time_major", False)
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    x = x.swapaxes(0, 1) if major else x
    more = {"residual": True} if cell == "simple" else {}
    for start in (None, cast(state_of(cell))):
        given = call if start is None else {**call, "initial_carry": start if len(start) == 2 else start[0]}
        with loosely():
            theirs = nn.RNN(FLAX[cell](WIDTH, **more), **{"return_carry": True, **options})
            variables = theirs.init(KEY, x, **given)
            want = zero_past(theirs.apply(variables, x, **given), call.get("seq_lengths"), major)
        ours = linen.RNN(CELLS[cell](WIDTH, **more), **{"return_carry": True, **options})
        chex.assert_trees_all_equal(ours.init(KEY, x, **given), variables)
        got = zero_past(ours.apply(variables, x, **given), None, major)
        chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)


@each_cell
def test_a_linen_cell_has_the_fields_of_flax_and_steps_as_it_does(cell: str) -> None:
    def fields(module: Any) -> list[tuple[str, Any]]:
        return [(f.name, f.default) for f in dataclasses.fields(module) if f.name not in ("parent", "name")]

    theirs, ours = fields(FLAX[cell]), fields(CELLS[cell])
    assert [name for name, _ in ours[: len(theirs)]] == [name for name, _ in theirs]
    assert ours[len(theirs) :] == [("norm", "none"), ("use_running_average", None)]
    assert all(a == b or callable(a[1]) for a, b in zip(ours, theirs, strict=False))
    x, key = jnp.asarray(normal(2, 3, INPUTS), jnp.float32), jax.random.key(3)
    initial = {"carry_init": nn.initializers.normal()}
    our_cell, their_cell = (kind(WIDTH, **initial) for kind in (CELLS[cell], FLAX[cell]))
    carry = our_cell.initialize_carry(key, x.shape)
    chex.assert_trees_all_equal(carry, their_cell.initialize_carry(key, x.shape))
    with loosely():
        want, variables = their_cell.init_with_output(KEY, carry, x)
    chex.assert_trees_all_equal(our_cell.init(KEY, carry, x), variables)
    chex.assert_trees_all_close(our_cell.apply(variables, carry, x), want, rtol=1e-6, atol=1e-6)
    assert our_cell.num_feature_axes == 1


def flax_driven(cell: str, norm: str, train: bool) -> nn.RNN:
    """Our cell, driven by Flax's RNN."""
    state = {"variable_broadcast": ("params", "batch_stats")}
    if train and norms.get(norm).stateful:
        state = {"variable_carry": "batch_stats"}
    return nn.RNN(CELLS[cell](WIDTH, norm=norm, use_running_average=not train), return_carry=True, **state)


@pytest.mark.parametrize(
    ("cell", "norm"), [*IN_TURNS, *((cell, "batch_step:max_steps=6,momentum=0.9") for cell in CELLS)]
)
def test_flax_drives_our_cells(cell: str, norm: str) -> None:
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    variables, modes = cast(variables_of(cell, norm)), (True, False) if norm in ACROSS else (True,)
    for train in modes if norms.get(norm).name != "batch_input" else (False,):
        ours, theirs = network(cell, norm, train), flax_driven(cell, norm, train)
        start = ours.cell.initialize_carry(
            KEY, (BATCH, INPUTS), **({"seq_lengths": SOME} if norms.get(norm).stateful else {})
        )
        mutable = ["batch_stats"] if train else []
        (carry, y), after = ours.apply(variables, x, seq_lengths=SOME, mutable=mutable)
        with loosely():
            found, left = theirs.apply(variables, x, initial_carry=start, seq_lengths=SOME, mutable=mutable)
        got, want = zero_past((state_in(found[0]), found[1]), SOME, False), (state_in(carry), y)
        chex.assert_trees_all_close(got, want, **CLOSE)
        if "max_steps=6" in norm:  # every step has a row
            chex.assert_trees_all_close(left, after, **CLOSE)


def flipped(x: np.ndarray, lengths: Any) -> np.ndarray:
    """Sequences in reverse, each within its length."""
    x = np.array(x)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return x


@pytest.mark.parametrize("norm", NORMS)
def test_both_directions_at_once(norm: str) -> None:
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    cell = functools.partial(CELLS["gru"], WIDTH, norm=norm, use_running_average=False)
    module = nn.Bidirectional(linen.RNN(cell()), linen.RNN(cell()), return_carry=True)
    there, back = cast((variables_of("gru", norm), variables_of("gru", norm)))
    back = jax.tree.map(lambda a: 0.7 * a, back)
    variables = {kind: {"forward_rnn": there[kind], "backward_rnn": back[kind]} for kind in there}
    (carry, y), after = module.apply(variables, hidden_past(x), seq_lengths=LENGTHS, mutable=["batch_stats"])
    zero = tuple(np.zeros((1, BATCH, WIDTH)))
    (y1, h1), statistics1 = expected("gru", norm, there, x, zero, LENGTHS)
    (y2, h2), statistics2 = expected("gru", norm, back, flipped(np.asarray(x), LENGTHS), zero, LENGTHS)
    want = (h1, h2, np.concatenate([y1, flipped(y2, LENGTHS)], -1))
    chex.assert_trees_all_close((*state_in(carry[0]), *state_in(carry[1]), y), want, rtol=1e-4, atol=1e-4)
    for name, statistics in (("forward_rnn", statistics1), ("backward_rnn", statistics2)):
        found = {kind: tree[name] for kind, tree in after.items()}
        chex.assert_trees_all_close(flat(found), statistics, rtol=1e-4, atol=1e-4)


@functools.cache
def evaluated(cell: str, norm: str) -> Callable[..., Any]:
    """`(variables, x, carry, lengths) -> (carry, outputs)`, compiled; nothing may change."""
    module = network(cell, norm, train=False)
    return jax.jit(
        lambda variables, x, carry, lengths: module.apply(variables, x, initial_carry=carry, seq_lengths=lengths)
    )


@each_batch_norm
def test_at_evaluation_each_sequence_takes_the_row_of_its_own_step(norm: str) -> None:
    cell = "lstm"
    variables, state, start = cast(variables_of(cell, norm)), cast(state_of(cell)), np.array([0, 1, 2, 3, 9])
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    carry, y = evaluated(cell, norm)(variables, hidden_past(x), carry_of(norm, state, start), LENGTHS)
    want, _ = expected(cell, norm, variables, x, state, LENGTHS, train=False, start=start)
    chex.assert_trees_all_close((y, *state_in(carry)), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(carry.step, start + LENGTHS)


@each_batch_norm
def test_one_example_and_one_step_at_a_time_is_the_whole_batch(norm: str) -> None:
    cell = "lstm"
    variables, state = cast(variables_of(cell, norm)), cast(state_of(cell))
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    _, whole = evaluated(cell, norm)(variables, x, carry_of(norm, state), None)
    module = CELLS[cell](WIDTH, norm=norm, use_running_average=True)
    step = jax.jit(functools.partial(module.apply, {kind: tree["cell"] for kind, tree in variables.items()}))
    for example in range(BATCH):
        carry = carry_of(norm, tuple(part[example : example + 1] for part in state))
        for t in range(TIME):
            carry, y = step(carry, x[example : example + 1, t])
            chex.assert_trees_all_close(y[0], whole[example, t], **CLOSE)


@pytest.mark.parametrize("norm", WITHIN)
def test_norms_within_an_example_know_no_other_example(norm: str) -> None:
    cell = "lstm"
    variables, state = cast(variables_of(cell, norm)), cast(state_of(cell))
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    run = evaluated(cell, norm)
    _, y = run(variables, x, carry_of(norm, state), None)
    _, among_others = run(variables, x.at[1:].set(9.0), carry_of(norm, state), None)
    np.testing.assert_array_equal(among_others[0], y[0])


@each_norm
def test_what_lies_past_the_end_is_never_read(norm: str) -> None:
    variables, state, weights = cast((variables_of("lstm", norm), state_of("lstm"), weights_of("lstm")))
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    run = trained("lstm", norm)
    found, zeros = (
        run(variables, past, state, LENGTHS, weights) for past in (hidden_past(x), np.nan_to_num(hidden_past(x)))
    )
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_equal(found, zeros)
    (y, c, h), _ = found[0]
    assert not np.any(y[np.arange(TIME) >= LENGTHS[:, None]])
    chex.assert_trees_all_equal((c[3], h[3]), (state[0][3], state[1][3]))
    full, _ = run(variables, x, state, FULL, weights)
    chex.assert_trees_all_close(full, run(variables, x, state, None, weights)[0], **CLOSE)


@pytest.mark.parametrize("norm", NORMS)
def test_padding_changes_nothing(norm: str) -> None:
    """Sequences of 3 steps, padded to 6, are those of 3 steps: values, gradients and running statistics."""
    variables, state = cast((variables_of("gru", norm), state_of("gru")))
    x, (weights, last) = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), cast(weights_of("gru"))
    run, short = trained("gru", norm), np.full(BATCH, 3)
    ((y, h), after), (dp, dx, ds) = run(variables, hidden_past(x, short), state, short, (weights, last))
    ((y3, h3), after3), (dp3, dx3, ds3) = run(variables, x[:, :3], state, None, (weights[:, :3], last))
    found, want = (y[:, :3], h, after, dp, dx[:, :3], ds), (y3, h3, after3, dp3, dx3, ds3)
    chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-5)


@each_batch_norm
def test_a_call_makes_one_update_of_each_row_it_reaches(norm: str) -> None:
    """The running statistics move by a tenth, whatever the number of steps; the reference says where to."""
    module, variables = network("lstm", norm), cast(variables_of("lstm", norm))
    before = flat({"batch_stats": variables["batch_stats"]})
    for steps in (2, TIME, 4 * TIME):
        x = jnp.asarray(normal(BATCH, steps, INPUTS), jnp.float32)
        _, after = module.apply(variables, x, mutable=["batch_stats"])
        _, statistics = expected("lstm", norm, variables, x, tuple(np.zeros((2, BATCH, WIDTH))))
        chex.assert_trees_all_close(flat(after), statistics, rtol=1e-4, atol=1e-5)
        for name, rows in flat(after).items():
            reached = len(rows) if len(rows) < 4 else min(steps, 4)
            assert np.all(rows[:reached] != before[name][:reached]), name
            np.testing.assert_array_equal(rows[reached:], before[name][reached:])


@pytest.mark.parametrize(
    "norm", ["batch_step:max_steps=4", "batch_shared", "batch_input", "batch_input:over=step,max_steps=4"]
)
def test_momentum_none_is_the_average_of_all_calls(norm: str) -> None:
    module = network("gru", f"{norm}{',' if ':' in norm else ':'}momentum=None")
    calls = [jnp.asarray(normal(BATCH, steps, INPUTS, seed=steps), jnp.float32) for steps in (6, 2, 4)]
    variables = module.init(KEY, calls[0])
    alone = network("gru", f"{norm}{',' if ':' in norm else ':'}momentum=0.0")
    each = []
    for x in calls:
        _, seen = alone.apply(variables, x, mutable=["batch_stats"])
        each.append({name: rows for name, rows in flat(seen).items() if not name.endswith("step")})
        _, after = module.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **after}
    found = flat({"batch_stats": variables["batch_stats"]})
    for name, rows in each[0].items():
        for row in range(len(rows)):
            reached = [
                seen[name][row] for seen, x in zip(each, calls, strict=True) if len(rows) < 4 or row < x.shape[1]
            ]
            np.testing.assert_allclose(found[name][row], np.mean(reached, 0), rtol=1e-4, atol=1e-5)


def test_a_sequence_goes_on_in_the_next_call() -> None:
    """Training on pieces of sequences: the second call moves the rows from where the first one left off."""
    norm, x = "batch_step:max_steps=9,momentum=0.9", jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    module = network("lstm", norm)
    variables = cast(variables_of("lstm", norm))
    (carry, y), whole = module.apply(variables, x, mutable=["batch_stats"])
    (middle, first), one = module.apply(variables, x[:, :2], mutable=["batch_stats"])
    (end, rest), two = module.apply({**variables, **one}, x[:, 2:], initial_carry=middle, mutable=["batch_stats"])
    chex.assert_trees_all_close((end, jnp.concatenate([first, rest], 1), two), (carry, y, whole), **CLOSE)


def test_steps_that_training_has_not_reached_use_the_last_statistics() -> None:
    """Rows to spare cost nothing: as if there were as many as training had steps."""
    x, found = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), []
    for rows in (4, 50):
        norm = f"batch_step:max_steps={rows},momentum=0.5"
        variables = network("lstm", norm).init(KEY, x)
        _, after = network("lstm", norm).apply(variables, x[:, :4], mutable=["batch_stats"])
        found.append(network("lstm", norm, train=False).apply(variables | after, x))
        assert after["batch_stats"]["cell"]["norm_h"]["mean"].shape[0] == rows
    (carry, y), (other, same) = found
    chex.assert_trees_all_close((carry.carry, y), (other.carry, same), rtol=0, atol=0)


def test_a_sequence_goes_on_across_devices() -> None:
    """Pieces of sequences that have ended on one of two devices and go on on the other."""
    x, lengths = jnp.asarray(normal(8, TIME, INPUTS), jnp.float32), np.array([2, 2, 1, 2, 6, 5, 6, 4])
    pieces = [(x[:, :3], np.minimum(lengths, 3)), (x[:, 3:], np.maximum(lengths - 3, 0))]
    mesh, given = Mesh(np.array(jax.devices()[:2]), ("d",)), "batch_step:max_steps=6,momentum=0.9"

    def results(norm: str, spread: Callable[..., Any]) -> Tree:
        module, variables = network("lstm", norm), cast(variables_of("lstm", given))
        carry = module.cell.initialize_carry(KEY, (8, INPUTS))
        for inputs, left in pieces:

            def run(variables: Tree, x: jax.Array, left: jax.Array, carry: Any) -> Any:
                return module.apply(variables, x, seq_lengths=left, initial_carry=carry, mutable=["batch_stats"])

            (carry, _), after = jax.jit(spread(run))(variables, inputs, jnp.asarray(left), carry)
            variables = {**variables, **after}
        return carry, variables["batch_stats"]

    specs = {"in_specs": (P(), P("d"), P("d"), P("d")), "out_specs": (P("d"), P())}
    found = results(f"{given},axis_name=d", functools.partial(jax.shard_map, mesh=mesh, **specs))
    chex.assert_trees_all_close(found, results(given, lambda run: run), rtol=1e-4, atol=1e-4)


TRANSFORMED = ("none", "layer", "batch_step:max_steps=4,momentum=0.9", "batch_input:momentum=0.9")
each_transformed = pytest.mark.parametrize("norm", TRANSFORMED)


def gradients_of(module: Any, variables: Tree, x: jax.Array) -> Any:
    """Outputs, running statistics and gradients of a network, for a random cotangent."""

    def loss(params: Tree, x: jax.Array) -> Any:
        (_, y), after = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.vdot(jnp.asarray(normal(*y.shape, seed=3), y.dtype), y), (y, after)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)


@each_transformed
def test_jit_and_remat_change_nothing(norm: str) -> None:
    x, variables = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), cast(variables_of("lstm", norm))
    options = {"norm": norm, "use_running_average": False}
    want = gradients_of(network("lstm", norm), variables, x)
    lifted = nn.remat(linen.RNN)(linen.LSTMCell(WIDTH, **options), return_carry=True)
    for found in (
        jax.jit(functools.partial(gradients_of, network("lstm", norm)))(variables, x),
        gradients_of(lifted, variables, x),
        jax.jit(jax.checkpoint(functools.partial(gradients_of, network("lstm", norm))))(variables, x),
    ):
        chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-5)


@each_transformed
def test_vmap_over_models_is_a_loop(norm: str) -> None:
    models = [cast(variables_of("gru", norm)), jax.tree.map(lambda a: 0.7 * a, cast(variables_of("gru", norm)))]
    xs = jnp.asarray(normal(2, BATCH, TIME, INPUTS), jnp.float32)
    run = functools.partial(gradients_of, network("gru", norm))
    found = jax.vmap(run)(jax.tree.map(lambda *a: jnp.stack(a), *models), xs)
    for i, model in enumerate(models):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], found), run(model, xs[i]), rtol=1e-4, atol=1e-4)


@each_transformed
def test_calls_inside_scan_compile_once_and_carry_the_statistics(norm: str) -> None:
    module, variables = network("lstm", norm), cast(variables_of("lstm", norm))
    xs = jnp.asarray(normal(3, BATCH, TIME, INPUTS), jnp.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(variables: Tree, x: jax.Array) -> Any:
        (_, y), after = module.apply(variables, x, mutable=["batch_stats"])
        return {**variables, **after}, y

    found, ys = jax.jit(lambda variables, xs: jax.lax.scan(step, variables, xs))(variables, xs)
    chex.clear_trace_counter()
    for x, y in zip(xs, ys, strict=True):
        variables, want = step(variables, x)
        chex.assert_trees_all_close(y, want, **CLOSE)
    chex.assert_trees_all_close(found, variables, **CLOSE)


class Layer(nn.Module):
    """A recurrent network as a layer of a stack that is scanned."""

    norm: str

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """As wide as its input."""
        return linen.RNN(linen.GRUCell(x.shape[-1], norm=self.norm, use_running_average=False))(x), None


@each_transformed
def test_layers_under_linen_scan(norm: str) -> None:
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    axes = {"params": 0, "batch_stats": 0}
    module = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)(norm)
    variables = module.init(KEY, x)
    (found, _), after = module.apply(variables, x, mutable=["batch_stats"])
    states = []
    for i in range(3):
        own = jax.tree.map(lambda a, i=i: a[i], variables)
        (x, _), state = Layer(norm).apply(own, x, mutable=["batch_stats"])
        states.append(state)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *states)
    chex.assert_trees_all_close((found, after), (x, stacked), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("cell", "norm"), [("simple", "none"), ("gru", "layer"), ("lstm", ACROSS[0]), ("lstm", ACROSS[3])]
)
def test_perturbations_have_the_gradient_of_each_hidden_state(x64: None, cell: str, norm: str) -> None:
    """The reference goes on from a hidden state that is moved a little, for each step in turn."""
    variables, x, weights = variables_of(cell, norm), normal(BATCH, TIME, INPUTS), normal(BATCH, TIME, WIDTH, seed=3)
    start = state_of(cell)

    def loss(hidden: jax.Array) -> jax.Array:
        given = {**cast(variables, jnp.float64), "perturbations": {"hidden": hidden}}
        carry = carry_of(norm, cast(start, jnp.float64))
        (_, y), _ = network(cell, norm).apply(given, jnp.asarray(x), initial_carry=carry, mutable=["batch_stats"])
        return jnp.vdot(weights, y)

    found = jax.jit(jax.grad(loss))(jnp.zeros((TIME, BATCH, WIDTH)))
    along = normal(TIME, BATCH, WIDTH, seed=9)
    for t in range(TIME - 1):
        (_, *state), _ = expected(cell, norm, variables, x[:, : t + 1], start)

        def after(step: float, t: int = t, state: Any = state) -> float:
            hidden = state[-1] + step * along[t]
            (y, *_), _ = expected(cell, norm, variables, x[:, t + 1 :], (*state[:-1], hidden))
            return float(np.vdot(weights[:, t + 1 :], y) + np.vdot(weights[:, t], hidden))

        want = (after(1e-6) - after(-1e-6)) / 2e-6
        np.testing.assert_allclose(np.vdot(found[t], along[t]), want, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found[-1], weights[:, -1], rtol=1e-9)


DEVICES = 8
MANY = 2 * DEVICES
UNEVEN = np.array([6, 5, 0, 0, 3, 6, 1, 1, 2, 6, 4, 4, 0, 3, 6, 2])  # one device has finished before it starts


def on_devices(way: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run(variables, x, lengths) -> (outputs, statistics)` on shards of the batch."""
    if way == "shard_map":
        mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("d",))
        return jax.shard_map(run, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=(P("d"), P()))
    mapped = jax.vmap(run, axis_name="d", in_axes=(None, 0, 0))

    def split(variables: Tree, x: jax.Array, lengths: jax.Array) -> Any:
        y, after = mapped(variables, x.reshape(DEVICES, -1, *x.shape[1:]), lengths.reshape(DEVICES, -1))
        return y.reshape(-1, *y.shape[2:]), jax.tree.map(lambda a: a[0], after)

    return split


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
@each_batch_norm
def test_eight_devices_equal_one_with_the_whole_batch(norm: str, way: str) -> None:
    variables, x = cast(variables_of("lstm", norm)), jnp.asarray(normal(MANY, TIME, INPUTS), jnp.float32)
    weights = jnp.asarray(normal(MANY, TIME, WIDTH, seed=3), jnp.float32)

    def result(norm: str, spread: Callable[..., Any]) -> Any:
        module = network("lstm", norm)

        def run(variables: Tree, x: jax.Array, lengths: jax.Array) -> Any:
            (_, y), after = module.apply(variables, x, seq_lengths=lengths, mutable=["batch_stats"])
            return y, after

        def loss(params: Tree, x: jax.Array) -> Any:
            y, after = spread(run)({**variables, "params": params}, x, jnp.asarray(UNEVEN))
            return jnp.vdot(weights, y), (y, after)

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], x)

    found = result(f"{norm},axis_name=d", functools.partial(on_devices, way))
    chex.assert_trees_all_close(found, result(norm, lambda run: run), rtol=1e-4, atol=1e-4)


def gradient_growth(cell: str, norm: str, steps: int) -> float:
    """Largest gradient norm of any hidden state, over that of the last, at initialization with inputs that are zero."""
    module = linen.RNN(CELLS[cell](32, norm=norm, use_running_average=False))
    x = jnp.zeros((8, steps, 1))
    variables = module.init(KEY, x[:, :1])
    weights = jnp.asarray(normal(8, 32), jnp.float32)

    def loss(params: Tree, hidden: jax.Array) -> jax.Array:
        given = {**variables, "params": params, "perturbations": {"hidden": hidden}}
        return jnp.vdot(weights, module.apply(given, x, mutable=["batch_stats"])[0][:, -1]) / 8

    params, hidden = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], jnp.zeros((steps, 8, 32)))
    chex.assert_tree_all_finite(params)
    each = jnp.linalg.norm(hidden.reshape(steps, -1), axis=-1)
    return float(each.max() / each[-1])


DEFAULTS = ("layer", "layer_per_gate", "rms", "group")
BATCH_DEFAULTS = ("batch_step", "batch_shared", "batch_input")


@pytest.mark.parametrize(
    ("cell", "norm"), [*itertools.product(CELLS, DEFAULTS), *itertools.product(["lstm"], BATCH_DEFAULTS)]
)
def test_defaults_do_not_explode_from_zero(cell: str, norm: str) -> None:
    """The gradient of the last step stays small at every step on the way back."""
    assert gradient_growth(cell, norm, 256) < 2


@pytest.mark.parametrize("norm", ["layer:initial_scale=1.0,epsilon=1e-5", "batch_step:epsilon=1e-5"])
def test_a_small_epsilon_explodes_from_zero(norm: str) -> None:
    """The trap that the defaults avoid, within 4 steps."""
    assert gradient_growth("lstm", norm, 4) > 1e6


def trained_values(norm: str, cell: str = "lstm", variables: Tree | None = None) -> Any:
    """Outputs, statistics and gradients in training, with sequences of many lengths."""
    variables = cast(variables_of(cell, norm)) if variables is None else variables
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    (found, after), gradients = trained(cell, norm)(variables, x, cast(state_of(cell)), LENGTHS, cast(weights_of(cell)))
    return found, after, gradients


EQUAL = [
    ("lstm", "batch_shared", "batch_step:max_steps=1"),
    ("lstm", "layer_per_gate", "group:num_groups=1"),
    ("gru", "group:num_groups=2", "group:group_size=2"),
    ("simple", "layer", "layer_per_gate"),
    ("simple", "layer", "group:num_groups=1"),
    ("gru", "batch_input:over=step,max_steps=6", "batch_input:over=step,max_steps=99,clamp=False"),
]


@pytest.mark.parametrize(("cell", "one", "other"), EQUAL)
def test_two_names_of_one_norm(cell: str, one: str, other: str) -> None:
    scale = norms.get(one).cell().initial_scale, norms.get(other).cell().initial_scale
    assert scale[0] == scale[1]
    params = cast(variables_of(cell, one)["params"])
    found, want = (
        trained_values(norm, cell, {**cast(variables_of(cell, norm)), "params": params}) for norm in (one, other)
    )
    if "max_steps" in one:  # the second has more rows, which stay as they were
        found, want = ((values, gradients) for values, _, gradients in (found, want))
    chex.assert_trees_all_close(found, want, **CLOSE)


@each_cell
def test_statistics_of_steps_and_shared_ones_differ_at_evaluation_only(cell: str) -> None:
    step, shared = "batch_step:max_steps=6,momentum=0.0", "batch_shared:momentum=0.0"
    variables = cast(variables_of(cell, step))
    there = {**cast(variables_of(cell, shared)), "params": variables["params"]}
    (found, own, pulled), (want, average, expected_pull) = (
        trained_values(norm, cell, v) for norm, v in ((step, variables), (shared, there))
    )
    chex.assert_trees_all_equal((found, pulled), (want, expected_pull))
    x, carry = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), cast(state_of(cell))
    _, y = evaluated(cell, step)({**variables, **own}, x, carry_of(step, carry), None)
    _, naive = evaluated(cell, shared)({**variables, **average}, x, carry_of(shared, carry), None)
    assert jnp.abs(y - naive).max() > 0.05


@in_turns
def test_fresh_parameters(cell: str, norm: str) -> None:
    """Scales start at `initial_scale`, nothing else is added to Flax's tree, and making them updates nothing."""
    x, spec = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), norms.get(norm)
    variables = network(cell, norm).init(KEY, x)
    with loosely():
        theirs = nn.RNN(FLAX[cell](WIDTH)).init(KEY, x)["params"]["cell"]
    params = variables["params"]["cell"]
    chex.assert_trees_all_equal({name: params[name] for name in theirs}, theirs)
    gates = len(reference.KERNELS[cell][0])
    paths = {"norm_x": gates * WIDTH, "norm_h": gates * WIDTH, **({"norm_c": WIDTH} if cell == "lstm" else {})}
    paths = {} if norm == "none" else {"norm_x": gates * WIDTH} if spec.name == "batch_input" else paths
    assert params.keys() - theirs.keys() == paths.keys()
    for path, features in paths.items():
        scale = np.full(features, spec.cell().initial_scale, np.float32)
        bias = {"bias": np.zeros(features, np.float32)} if path == "norm_c" else {}
        chex.assert_trees_all_equal(params[path], {"scale": scale, **bias})
    assert set(variables) == {"params", *(["batch_stats"] if spec.stateful else [])}
    rows = 4 if "max_steps=4" in norm else 1
    for path, statistics in variables.get("batch_stats", {}).get("cell", {}).items():
        start = {"mean": np.zeros((rows, paths[path]), np.float32), "var": np.ones((rows, paths[path]), np.float32)}
        chex.assert_trees_all_equal(statistics, start)


NNX = {"simple": nnx.SimpleCell, "lstm": nnx.LSTMCell, "gru": nnx.GRUCell}
FLAX_NNX = {"simple": flax_nnx.SimpleCell, "lstm": flax_nnx.LSTMCell, "gru": flax_nnx.GRUCell}


def nnx_values(module: Any) -> dict[str, jax.Array]:
    """Parameters and running statistics of an NNX module, by path."""
    state = flax_nnx.to_flat_state(flax_nnx.state(module, (flax_nnx.Param, flax_nnx.BatchStat)))
    return {"/".join(map(str, path)): leaf[...] for path, leaf in state}


def nnx_like(cell: str, norm: str, variables: Tree, train: bool) -> Any:
    """An NNX cell with the variables of a Linen cell, whose kernels NNX joins in some cells."""
    module = NNX[cell](INPUTS, WIDTH, norm=norm, use_running_average=not train, rngs=flax_nnx.Rngs(0))
    given = flat(variables)
    if cell != "lstm":
        for joined, names in zip(("dense_i", "dense_h"), reference.KERNELS[cell], strict=True):
            given[f"{joined}/kernel"] = np.concatenate([given[f"{name}/kernel"] for name in names], -1)
        given["dense_i/bias"] = np.concatenate([given[f"{name}/bias"] for name in reference.KERNELS[cell][0]])
    for path, leaf in flax_nnx.to_flat_state(flax_nnx.state(module, (flax_nnx.Param, flax_nnx.BatchStat))):
        leaf_path = "/".join(map(str, path)).replace("if_/", "if/")
        leaf[...] = jnp.asarray(given[leaf_path], jnp.float32)
        flax_nnx.update(module, flax_nnx.from_flat_state([(path, leaf)]))
    return module


def linen_like(cell: str, norm: str) -> Tree:
    """Linen variables that an NNX cell can have, too: no bias of its own on the recurrent path of a GRU."""
    variables = cast(variables_of(cell, norm))
    if cell == "gru":
        variables["params"]["cell"]["hn"]["bias"] *= 0
    return variables


@in_turns
def test_nnx_has_the_numbers_of_linen(cell: str, norm: str) -> None:
    variables, state = linen_like(cell, norm), cast(state_of(cell))
    x = hidden_past(normal(BATCH, TIME, INPUTS)).astype(np.float32)
    for train in (True, False) if norm in ACROSS else (True,):
        module = nnx.RNN(nnx_like(cell, norm, variables, train), return_carry=True)
        (carry, y), after = network(cell, norm, train).apply(
            variables, x, initial_carry=carry_of(norm, state), seq_lengths=LENGTHS, mutable=["batch_stats"] * train
        )
        found = module(jnp.asarray(x), initial_carry=carry_of(norm, state), seq_lengths=LENGTHS)
        chex.assert_trees_all_close(found, (carry, y), **CLOSE)
        statistics = {k: v for k, v in nnx_values(module.cell).items() if k.endswith(("mean", "var"))}
        chex.assert_trees_all_close(
            statistics, flat(after or {"batch_stats": variables.get("batch_stats", {})}), **CLOSE
        )


@each_cell
def test_without_a_norm_nnx_is_flax(cell: str) -> None:
    x = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32)
    ours, theirs = (kinds[cell](INPUTS, WIDTH, rngs=flax_nnx.Rngs(0)) for kinds in (NNX, FLAX_NNX))
    chex.assert_trees_all_equal(nnx_values(ours), nnx_values(theirs))
    for options, call in DRIVEN.values():
        major = options.get("time_major") or call.get("time_major", False)
        given = x.swapaxes(0, 1) if major else x
        with loosely():
            want = flax_nnx.RNN(theirs, **{"return_carry": True, **options})(given, **call)
        want = zero_past(want, call.get("seq_lengths"), major)
        for rnn in (nnx.RNN, flax_nnx.RNN):
            got = zero_past(
                rnn(ours, **{"return_carry": True, **options})(given, **call), call.get("seq_lengths"), major
            )
            chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [*WITHIN, "batch_step:max_steps=6,momentum=0.9", *ACROSS])
def test_flax_nnx_drives_our_cells(norm: str) -> None:
    x, variables = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), linen_like("lstm", norm)
    for train in (False, True) if norms.get(norm).name != "batch_input" else (False,):
        ours, theirs = (nnx_like("lstm", norm, variables, train) for _ in range(2))
        lengths = {"seq_lengths": SOME} if norms.get(norm).stateful else {}
        start = theirs.initialize_carry((BATCH, INPUTS), flax_nnx.Rngs(0), **lengths)
        want = nnx.RNN(ours, return_carry=True)(x, seq_lengths=SOME)
        with loosely():
            found = flax_nnx.RNN(theirs, return_carry=True)(x, initial_carry=start, seq_lengths=SOME)
        found, want = ((state_in(carry), y) for carry, y in (found, want))
        chex.assert_trees_all_close(zero_past(found, SOME, False), want, **CLOSE)
        if "max_steps=6" in norm or not train:
            chex.assert_trees_all_close(nnx_values(theirs), nnx_values(ours), **CLOSE)


@pytest.mark.parametrize("norm", ["layer", ACROSS[0]])
def test_nnx_both_directions_train_and_eval(norm: str) -> None:
    x, variables = jnp.asarray(normal(BATCH, TIME, INPUTS), jnp.float32), linen_like("gru", norm)
    model = flax_nnx.Bidirectional(*(nnx.RNN(nnx_like("gru", norm, variables, True)) for _ in range(2)))
    before = nnx_values(model)
    zero = tuple(np.zeros((1, BATCH, WIDTH)))
    (there, _), statistics = expected("gru", norm, variables, x, zero, LENGTHS)
    (back, _), _ = expected("gru", norm, variables, flipped(np.asarray(x), LENGTHS), zero, LENGTHS)
    y = flax_nnx.jit(lambda model, x: model(x, seq_lengths=jnp.asarray(LENGTHS)))(model, x)
    chex.assert_trees_all_close(y, np.concatenate([there, flipped(back, LENGTHS)], -1), rtol=1e-4, atol=1e-5)
    for path, want in statistics.items():
        np.testing.assert_allclose(nnx_values(model)[f"forward_rnn/cell/{path}"], want, rtol=1e-4, atol=1e-5)
    model.eval()
    now = nnx_values(model)
    assert norm == "layer" or any(np.any(now[path] != before[path]) for path in now)
    model(x)
    chex.assert_trees_all_equal(nnx_values(model), now)
    model.train()
    model(x)
    assert norm == "layer" or any(np.any(leaf != now[path]) for path, leaf in nnx_values(model).items())


@pytest.mark.parametrize("norm", ["layer", ACROSS[0], ACROSS[2]])
def test_nnx_models_under_vmap_and_gradients(norm: str) -> None:
    xs, weights = (jnp.asarray(normal(2, BATCH, TIME, n, seed=n), jnp.float32) for n in (INPUTS, WIDTH))

    def make(key: jax.Array) -> Any:
        return nnx.RNN(nnx.LSTMCell(INPUTS, WIDTH, norm=norm, rngs=flax_nnx.Rngs(key)))

    def step(model: Any, x: jax.Array, w: jax.Array) -> Any:
        return flax_nnx.value_and_grad(lambda model: jnp.vdot(w, model(x)))(model)

    keys = jax.random.split(KEY, 2)
    models = flax_nnx.vmap(make)(keys)
    found = flax_nnx.vmap(step)(models, xs, weights)
    for i in range(2):
        model = make(keys[i])
        want = step(model, xs[i], weights[i])
        got = jax.tree.map(lambda a, i=i: a[i], (found, nnx_values(models)))
        chex.assert_trees_all_close(
            jax.tree.leaves(got), jax.tree.leaves((want, nnx_values(model))), rtol=1e-4, atol=1e-4
        )


def made(norm: str = "none", cell: str = "lstm", train: bool | None = False, rnn: bool = True, **call: Any) -> Any:
    """Make the variables of a network; or raise."""
    made_cell = CELLS[cell](WIDTH, norm=norm, use_running_average=None if train is None else not train)
    return linen.RNN(made_cell).init(KEY, call.pop("x", jnp.ones((BATCH, TIME, INPUTS))), **call)


def applied(norm: str, **call: Any) -> Any:
    """Run a network in training; or raise."""
    x = call.pop("x", jnp.ones((BATCH, TIME, INPUTS)))
    return network("lstm", norm).apply(cast(variables_of("lstm", norm)), x, mutable=["batch_stats"], **call)


STEP = "batch_step:max_steps=4"
PLAIN = tuple(np.zeros((2, BATCH, WIDTH), np.float32))
ERRORS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "steps",
        lambda: applied(STEP + ",clamp=False"),
        ValueError,
        r"up to 4 steps.*`max_steps`.*`clamp=False`.*got 6\.",
    ),
    (
        "steps of two calls",
        lambda: applied(STEP + ",clamp=False", x=jnp.ones((BATCH, 3, INPUTS)), initial_carry=carry_of(STEP, PLAIN, 2)),
        ValueError,
        r"up to 4 steps.*got 5\.",
    ),
    (
        "negative",
        lambda: applied("layer", seq_lengths=np.array([1, 2, -1, 3, 4])),
        ValueError,
        r"from 0 to 6.*got -1 to 4",
    ),
    (
        "too long",
        lambda: applied("layer", seq_lengths=np.array([1, 2, 7, 3, 4])),
        ValueError,
        r"from 0 to 6.*got 1 to 7",
    ),
    (
        "how many",
        lambda: applied("none", seq_lengths=np.array([1, 2])),
        ValueError,
        r"shape \(5,\).*got .*shape \(2,\)",
    ),
    ("real", lambda: applied("none", seq_lengths=np.ones(5, np.float32)), ValueError, r"whole numbers.*got float32"),
    ("none left", lambda: applied(STEP, seq_lengths=np.zeros(5, int)), ValueError, r"at least one.*all 0"),
    (
        "list of reals",
        lambda: applied("none", seq_lengths=[1.5, 2, 3, 4, 5]),
        ValueError,
        r"whole numbers.*got float64",
    ),
    (
        "lengths of a carry",
        lambda: linen.GRUCell(4, norm=STEP).initialize_carry(KEY, (BATCH, INPUTS), [-2, 1, 1, 1, 1]),
        ValueError,
        r"from 0 up, got -2 to 1",
    ),
    ("carry", lambda: applied(STEP, initial_carry=PLAIN), ValueError, r"`TimedCarry`.*got tuple.*`initialize_carry`"),
    (
        "timed carry",
        lambda: applied("layer", initial_carry=carry_of(STEP, PLAIN)),
        ValueError,
        r"Flax's cell, got TimedCarry.*`initialize_carry`",
    ),
    ("rank", lambda: made("layer", x=jnp.ones(INPUTS)), ValueError, r"shape \[\*batch, time, features\], got \(3,\)"),
    ("no mode", lambda: made(STEP, train=None), ValueError, r"`use_running_average`.*got None"),
    (
        "flag",
        lambda: linen.RNN(linen.GRUCell(4, use_running_average=3)).init(KEY, jnp.ones((2, 2, 2))),
        TypeError,
        r"got 3",
    ),
    *[
        (
            f"{norm} in a cell",
            lambda norm=norm: made(norm),
            ValueError,
            rf"`?batch_step`?, `?batch_shared`?.*`?batch_input`?.*got '{norm}'|got '{norm}'.*batch_step.*batch_input",
        )
        for norm in ("batch", "batch_renorm", "instance")
    ],
    ("misspelt", lambda: made("layr"), norms.UnknownNorm, r"got 'layr'\. Did you mean 'layer'\?"),
    ("option", lambda: made("batch_step:max_step=4"), ValueError, r"got 'max_step'"),
    ("option of another", lambda: made("batch_shared:max_steps=4"), ValueError, r"got 'max_steps'"),
    ("option of none", lambda: made("none:epsilon=0.1"), ValueError, r"got 'epsilon'"),
    ("groups", lambda: made("group:num_groups=3"), ValueError, r"`num_groups` to divide the 4 features .*got 3\."),
    (
        "max_steps",
        lambda: made("batch_step:max_steps=0"),
        ValueError,
        r"`max_steps` to be a positive whole number, got 0",
    ),
    ("epsilon", lambda: made("layer:epsilon=12"), ValueError, r"`epsilon` to lie in \[0, 1\), got 12"),
    ("scale", lambda: made("layer:initial_scale=big"), TypeError, r"`initial_scale` to be a number, got 'big'"),
    ("infinite scale", lambda: made("layer:initial_scale=inf"), ValueError, r"`initial_scale` to be .*got inf"),
    ("momentum", lambda: made("batch_step:momentum=1.5"), ValueError, r"`momentum`.*to lie in \[0, 1\], got 1\.5"),
    ("over", lambda: made("batch_input:over=time"), ValueError, r"`over` to be 'step' or 'sequence', got 'time'"),
    ("clamp", lambda: made("batch_step:clamp=3"), TypeError, r"`clamp` to be True.*got 3"),
    (
        "unbound axis",
        lambda: applied(STEP + ",axis_name=d"),
        ValueError,
        r"`axis_name` 'd' to be an axis of an enclosing",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_says_what_was_expected_and_what_came(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        make()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("norm", [*ACROSS[:2], ACROSS[3]])
@each_cell
def test_one_sequence_has_no_batch_statistics(cell: str, norm: str) -> None:
    x, variables = jnp.ones((1, TIME, INPUTS)), cast(variables_of(cell, norm))
    with pytest.raises(StatisticsError, match=r"more than one element, got one.*Use a larger batch"):
        network(cell, norm).apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_equal_shapes(network(cell, norm).init(KEY, x), variables)
    assert network(cell, norm, train=False).apply(variables, x)[1].shape == (1, TIME, WIDTH)


@pytest.mark.parametrize("name", ["layer_per_gate", "batch_step", "batch_shared", "batch_input"])
def test_norms_of_cells_are_no_layers(name: str) -> None:
    norm = norms.get(name)
    assert norm.entry.cell_only
    assert norm.needs_batch == norm.stateful == name.startswith("batch")
    for make in (lambda: norm.linen(train=True), lambda: norm.nnx(4, rngs=flax_nnx.Rngs(0))):
        with pytest.raises(ValueError, match=rf"(?i)cell.*{name}|{name}.*cell"):
            make()
