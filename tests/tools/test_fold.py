"""Folding in Linen: what is folded, what is not and why, and that outputs stay."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict, freeze
from flax.traverse_util import flatten_dict

from normlab import linen, norms
from normlab.errors import BadInput
from normlab.models.resnet import ResNet
from normlab.tools.fold import Folded, FoldError, FoldReport, fold
from tests.support.shaken import drawn, fingerprint, shaken

Body = Callable[..., jax.Array]
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
POSITIONS = np.random.default_rng(2).normal(size=(3, 5, 4)).astype(np.float32)
norm = partial(nn.BatchNorm, use_running_average=True)


class Net(nn.Module):
    """A network written as a function."""

    body: Body

    @nn.compact
    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        return self.body(x, **options)


def folded(body: Body, x: np.ndarray = ROWS, **options: Any) -> Folded:
    """Fold a network, and check what holds for every fold."""
    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), x))
    before = fingerprint(variables)
    result = fold(net, variables, x, **options)
    assert fingerprint(variables) == before
    expected = np.asarray(net.apply(variables, x))
    np.testing.assert_allclose(result(x), expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))
    return result


def reasons(result: Folded) -> dict[str, str]:
    return {row.path: row.reason for row in result.report if row.reason}


def hows(result: Folded) -> dict[str, tuple[str, str]]:
    return {row.path: (row.how, row.into) for row in result.report}


def test_vector() -> None:
    net = nn.Sequential([nn.Dense(2), norm()])
    parameters = {
        "layers_0": {"kernel": jnp.array([[1.0, 2], [3, 4]]), "bias": jnp.array([0.5, -1])},
        "layers_1": {"scale": jnp.array([2.0, 3]), "bias": jnp.array([0.1, 0.2])},
    }
    statistics = {"layers_1": {"mean": jnp.array([1.0, -2]), "var": jnp.array([3.99999, 0.24999])}}
    result = fold(net, {"params": parameters, "batch_stats": statistics}, jnp.ones((1, 2)))
    layer = result.variables["params"]["layers_0"]
    np.testing.assert_allclose(layer["kernel"], [[1, 12], [3, 24]], rtol=1e-6)
    np.testing.assert_allclose(layer["bias"], [-0.4, 6.2], rtol=1e-6)
    np.testing.assert_allclose(result(jnp.ones((1, 2))), [[3.6, 42.2]], rtol=1e-6)
    assert hows(result) == {"layers_1": ("identity", "layers_0")}


def test_a_layer_without_bias_leaves_the_shift_to_the_norm() -> None:
    result = folded(lambda x: norm(name="bn")(nn.Dense(3, use_bias=False, name="dense")(x)))
    assert hows(result) == {"bn": ("bias", "dense")}
    assert jax.tree.map(np.shape, result.variables) == {"params": {"dense": {"kernel": (4, 3)}, "bn": {"bias": (3,)}}}
    plain = partial(norm, use_bias=False, use_scale=False)
    result = folded(lambda x: plain(name="bn")(nn.Dense(3, use_bias=False, name="dense")(x)))
    assert set(flatten_dict(result.variables)) == {("params", "dense", "kernel"), ("params", "bn", "bias")}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv(6, (3,), feature_group_count=2, name="layer"), (2, 5, 4)),
        (nn.Conv(8, (3,), feature_group_count=4, use_bias=False, name="layer"), (2, 5, 4)),
        (nn.ConvTranspose(4, (3,), strides=(2,), name="layer"), (2, 5, 4)),
        (nn.ConvTranspose(4, (3,), transpose_kernel=True, name="layer"), (2, 5, 4)),
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = folded(lambda x: norm(name="bn")(layer.clone(parent=nn.module._context.module_stack[-1])(x)), x)
    assert hows(result)["bn"][1] == "layer"
    assert result.report.folded == 1


def test_embedding_takes_the_shift_too() -> None:
    words = np.arange(6).reshape(2, 3)
    result = folded(lambda x: norm(name="bn")(nn.Embed(7, 4, name="table")(x)), words)
    assert hows(result) == {"bn": ("identity", "table")}
    assert set(flatten_dict(result.variables)) == {("params", "table", "embedding")}


def test_a_table_that_gives_logits_too_stays() -> None:
    def tied(x: jax.Array) -> jax.Array:
        table = nn.Embed(7, 4, name="table")
        return table.attend(norm(name="bn")(table(x)))

    result = folded(tied, np.arange(6), check=False)
    assert reasons(result) == {"bn": "`table` is called 2 times."}


def test_several_feature_axes() -> None:
    general = partial(nn.DenseGeneral, (2, 3), name="dense")
    result = folded(lambda x: norm(name="bn", axis=(-2, -1))(general()(x)))
    assert hows(result) == {"bn": ("identity", "dense")}
    result = folded(lambda x: norm(name="bn")(general()(x)))
    assert reasons(result) == {"bn": "The features of `bn` are not the output axis of the kernel of `dense`."}


def conv(**options: Any) -> nn.Conv:
    return nn.Conv(4, (3,), name="conv_1", **options)


def test_into_the_layer_behind() -> None:
    result = folded(lambda x: conv(padding="VALID")(norm(name="bn")(x)), POSITIONS)
    assert hows(result) == {"bn": ("identity", "conv_1")}
    assert set(flatten_dict(result.variables)) == {("params", "conv_1", "kernel"), ("params", "conv_1", "bias")}


def test_two_norms_into_one_layer() -> None:
    def both(x: jax.Array, use_bias: bool) -> jax.Array:
        return norm(name="after")(conv(padding="VALID", use_bias=use_bias)(norm(name="before")(nn.relu(x))))

    result = folded(partial(both, use_bias=True), POSITIONS)
    assert hows(result) == {"before": ("identity", "conv_1"), "after": ("identity", "conv_1")}
    result = folded(partial(both, use_bias=False), POSITIONS)
    assert hows(result) == {"before": ("identity", "conv_1"), "after": ("bias", "conv_1")}


PADS = (
    "`bn` follows an input of the model, not a layer. `bn` comes before `conv_1`, which pads with zeros: its shift "
    "would be missing at the border. Use padding='VALID' or leave it."
)


def test_a_layer_behind_that_pads() -> None:
    result = folded(lambda x: conv()(norm(name="bn")(x)), POSITIONS)
    assert reasons(result) == {"bn": PADS}
    assert hows(result) == {"bn": ("affine", "")}
    centred = partial(norm, use_bias=False, name="bn")
    net = Net(lambda x: conv()(centred()(x)))
    variables = net.init(jax.random.key(0), POSITIONS)
    variables["params"]["bn"]["scale"] = jnp.arange(1.0, 5.0)  # no mean, no bias: no shift
    assert hows(fold(net, variables, POSITIONS)) == {"bn": ("identity", "conv_1")}


def test_a_layer_behind_without_bias() -> None:
    result = folded(lambda x: nn.Dense(3, use_bias=False, name="dense")(norm(name="bn")(x)))
    assert reasons(result) == {
        "bn": "`bn` follows an input of the model, not a layer. `dense` has no bias to take up the shift."
    }


def test_without_follow() -> None:
    result = folded(lambda x: nn.Dense(3, name="dense")(norm(name="bn")(x)), follow=False)
    assert reasons(result) == {"bn": "`bn` follows an input of the model, not a layer."}
    assert set(flatten_dict(result.variables["params"])) >= {("bn", "scale"), ("bn", "bias")}


def twice(x: jax.Array) -> jax.Array:
    dense, bn = nn.Dense(4, name="dense"), norm(name="bn")
    return bn(dense(bn(dense(x))))


def layer_twice(x: jax.Array) -> jax.Array:
    dense = nn.Dense(4, name="dense")
    return norm(name="bn")(dense(dense(x)))


def elsewhere(x: jax.Array) -> jax.Array:
    y = nn.Dense(4, name="dense")(x)
    return y + norm(name="bn")(y)


def after_cond(x: jax.Array) -> jax.Array:
    return norm(name="bn")(jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x))


class Block(nn.Module):
    """Dense and norm, to be scanned."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return norm(name="bn")(nn.Dense(4, name="dense")(x)), None


def scanned(x: jax.Array) -> jax.Array:
    block = nn.scan(Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
    return block(name="blocks")(x, None)[0]


def scanned_with_shared(x: jax.Array) -> jax.Array:
    shared = ["params", "batch_stats"]
    return nn.scan(Block, variable_broadcast=shared, split_rngs={"params": False}, length=2)(name="blocks")(x, None)[0]


class Activated(nn.BatchNorm):
    """A norm with an activation inside."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(super().__call__(x))


def dense(features: int = 4, **options: Any) -> nn.Dense:
    return nn.Dense(features, name="dense", **options)


def stacked(features: int = 4) -> nn.Module:
    kind = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})
    return kind(features, name="dense")


OTHERS: dict[str, tuple[Body, np.ndarray, str, str]] = {
    "used elsewhere": (elsewhere, ROWS, "bn", "The output of `dense` is used elsewhere, not only by `bn`."),
    "norm twice": (twice, ROWS, "bn", "`bn` is called 2 times."),
    "layer twice": (layer_twice, ROWS, "bn", "`dense` is called 2 times."),
    "addition": (lambda x: norm(name="bn")(dense()(x) + x), ROWS, "bn", "`bn` follows `add`, not a layer."),
    "relu": (lambda x: norm(name="bn")(nn.relu(dense()(x))), ROWS, "bn", "`bn` follows `max`, not a layer."),
    "pooling": (
        lambda x: norm(name="bn")(nn.max_pool(dense()(x), (2,))),
        POSITIONS,
        "bn",
        "`bn` follows `reduce_window_max`, not a layer.",
    ),
    "norm before": (
        lambda x: norm(name="bn")(nn.LayerNorm(name="ln")(x)),
        ROWS,
        "bn",
        "`bn` follows the norm `ln`, not a layer.",
    ),
    "unknown": (after_cond, ROWS, "bn", "The producer of the input of `bn` is unknown."),
    "weight norm": (
        lambda x: norm(name="bn")(nn.WeightNorm(dense(), name="weights")(x)),
        ROWS,
        "bn",
        "The kernel of `dense` is normalized on its way.",
    ),
    "reparametrized": (
        lambda x: norm(name="bn")(linen.Reparametrized(dense(), "weight_norm", name="weights")(x)),
        ROWS,
        "bn",
        "The kernel of `dense` is normalized on its way.",
    ),
    "standardized": (
        lambda x: norm(name="bn")(linen.StandardizedDense(4, name="dense")(x)),
        ROWS,
        "bn",
        "The kernel of `dense` is normalized on its way.",
    ),
    "stack before": (
        lambda x: norm(name="bn")(stacked()(x)),
        POSITIONS,
        "bn",
        "`dense` has a stack of kernels, as under `nn.vmap`.",
    ),
    "stack behind": (
        lambda x: stacked(2)(norm(name="bn")(jnp.sin(x))),
        POSITIONS,
        "bn",
        "`bn` follows `sin`, not a layer. `dense` has a stack of kernels, as under `nn.vmap`.",
    ),
    "axis": (
        lambda x: norm(name="bn", axis=1)(dense()(x)),
        POSITIONS,
        "bn",
        "The features of `bn` are not the output axis of the kernel of `dense`.",
    ),
}
KEPT: dict[str, tuple[Body, np.ndarray, str, str]] = {
    "layer norm": (
        lambda x: nn.LayerNorm(name="ln")(dense()(x)),
        ROWS,
        "ln",
        "`ln` takes its statistics from its input (kind `layer`).",
    ),
    "RMS norm": (
        lambda x: linen.RMSNorm(name="rms")(dense()(x)),
        ROWS,
        "rms",
        "`rms` takes its statistics from its input (kind `rms`).",
    ),
    "group norm": (
        lambda x: nn.GroupNorm(2, name="gn")(dense()(x)),
        POSITIONS,
        "gn",
        "`gn` takes its statistics from its input (kind `group`).",
    ),
    "instance norm": (
        lambda x: nn.InstanceNorm(name="in")(dense()(x)),
        POSITIONS,
        "in",
        "`in` takes its statistics from its input (kind `instance`).",
    ),
    "statistics of the batch": (
        lambda x: linen.BatchNorm(use_running_average=True, statistics="batch", name="bn")(dense()(x)),
        ROWS,
        "bn",
        "`bn` normalizes by its batch at evaluation, too (`statistics='batch'`).",
    ),
    "scan": (
        scanned,
        ROWS,
        "blocks/bn",
        "`blocks/bn` runs inside `scan`, with parameters for many calls.",
    ),
    "scan with shared parameters": (
        scanned_with_shared,
        ROWS,
        "blocks/bn",
        "`blocks/bn` runs inside `scan`, with parameters for many calls.",
    ),
    "subclass": (
        lambda x: Activated(use_running_average=True, name="bn")(dense()(x)),
        ROWS,
        "bn",
        "`bn` is a `Activated`, which does more in `__call__` than a norm.",
    ),
    "scale of the call": (
        lambda x: linen.BatchNorm(use_running_average=True, name="bn")(dense()(x), scale=x),
        ROWS,
        "bn",
        "`bn` is given `scale` in its call.",
    ),
    "mask": (
        lambda x: linen.BatchNorm(use_running_average=True, name="bn")(dense()(x), mask=x > 0),
        ROWS,
        "bn",
        "`bn` is given `mask` in its call.",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_norm_that_no_layer_takes_is_a_multiplication_and_an_addition(name: str) -> None:
    body, x, path, reason = OTHERS[name]
    result = folded(body, x)
    row = result.report.by_path[path]
    assert (row.how, row.into, row.reason) == ("affine", "", reason)
    assert "rsqrt" not in str(jax.make_jaxpr(result)(x)) or name in (
        "norm before",
        "weight norm",
        "reparametrized",
        "standardized",
    )
    assert "batch_stats" not in result.variables


@pytest.mark.parametrize("name", KEPT)
def test_a_norm_that_is_no_fixed_map_stays(name: str) -> None:
    body, x, path, reason = KEPT[name]
    result = folded(body, x)
    row = result.report.by_path[path]
    assert (row.how, row.into, row.reason) == ("kept", "", reason)
    assert result.report.folded == 0
    assert isinstance(result.model, Net)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_variance_that_is_not_positive(value: float) -> None:
    net = Net(lambda x: norm(name="bn")(dense()(x)))
    variables = net.init(jax.random.key(0), ROWS)
    variables["batch_stats"]["bn"]["var"] = jnp.array([1.0, 1.0, value, 1.0])
    result = fold(net, variables, ROWS, check=False)
    assert reasons(result) == {"bn": f"`bn` has a running variance of {value:.3g}, which is not above 0."}
    assert hows(result) == {"bn": ("kept", "")}


def test_norms_that_change_nothing_are_removed() -> None:
    net = Net(lambda x: norms.get("none").linen(train=False, name="none")(norm(name="bn")(nn.relu(x))))
    variables = net.init(jax.random.key(0), ROWS)
    variables["batch_stats"]["bn"]["var"] = jnp.full(4, 1 - 1e-5)
    result = fold(net, variables, ROWS)
    assert hows(result) == {"bn": ("identity", ""), "none": ("identity", "")}
    assert result.report.folded == 2
    assert dict(result.variables) == {}
    assert np.array_equal(result(ROWS), nn.relu(ROWS))


def test_where() -> None:
    def two(x: jax.Array) -> jax.Array:
        return norm(name="second")(nn.Dense(4, name="b")(norm(name="first")(nn.Dense(4, name="a")(x))))

    result = folded(two, where="sec*")
    assert hows(result) == {"first": ("kept", ""), "second": ("identity", "b")}
    assert reasons(result) == {"first": "`first` is not chosen by `where`."}
    assert folded(two, where=lambda site: site.path == "first").report.folded == 1
    with pytest.raises(BadInput, match=r"`a` is no norm; its norm is `first`\."):
        folded(two, where="a")


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm, linen.BatchNorm, linen.BatchRenorm])
def test_variables_for_a_model_that_stays(kind: type[nn.Module], use_bias: bool) -> None:
    def body(x: jax.Array) -> jax.Array:
        x = kind(use_running_average=True, name="bn")(nn.Dense(4, use_bias=use_bias, name="dense")(x))
        return nn.Dense(2, name="head")(kind(use_running_average=True, name="last")(nn.relu(x)))

    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS, form="variables")
    assert result.model is net
    assert jax.tree.map(jnp.shape, result.variables) == jax.tree.map(jnp.shape, variables)
    assert hows(result) == {"bn": ("variables", "dense"), "last": ("variables", "head")}
    assert [row.notes for row in result.report] == [
        ("`bn` still runs, as one addition.",),
        ("`last` still runs, as one addition.",),
    ]
    np.testing.assert_allclose(net.apply(result.variables, ROWS), net.apply(variables, ROWS), rtol=1e-5, atol=1e-5)
    old, new = (one["params"]["bn"] for one in (variables, result.variables))
    statistics, after = (one["batch_stats"]["bn"] for one in (variables, result.variables))
    divisor = statistics["std"] if "std" in statistics else np.sqrt(statistics["var"] + 1e-5)
    expected = old["bias"] - statistics["mean"] * old["scale"] / divisor
    dense_bias = variables["params"]["dense"].get("bias", jnp.zeros(4))
    np.testing.assert_allclose(new["bias"], expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(new["scale"], np.ones(4)) and np.array_equal(after["mean"], np.zeros(4))
    np.testing.assert_allclose(after["std"] if "std" in after else after["var"] + 1e-5, np.ones(4), rtol=1e-7)
    if use_bias:
        kept = result.variables["params"]["dense"]["bias"]
        np.testing.assert_allclose(kept, dense_bias * old["scale"] / divisor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["model", "variables"])
def test_the_deviation_of_batch_renorm_has_epsilon_inside(form: Any) -> None:
    net = Net(lambda x: linen.BatchRenorm(use_running_average=True, epsilon=0.5, name="bn")(dense()(x)))
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS, form=form, check=False)
    np.testing.assert_allclose(result(ROWS), net.apply(variables, ROWS), rtol=1e-5, atol=1e-5)


def test_variables_need_a_bias_somewhere() -> None:
    plain = partial(norm, use_bias=False, name="bn")
    result = folded(lambda x: plain()(dense(use_bias=False)(x)), form="variables")
    assert reasons(result) == {"bn": "Neither `bn` nor `dense` has a bias to take up the shift."}
    assert hows(result) == {"bn": ("kept", "")}
    assert hows(folded(lambda x: plain()(dense()(x)), form="variables")) == {"bn": ("variables", "dense")}


def test_training_is_refused() -> None:
    net = ResNet(norms.get("batch"), depth=8)
    variables = drawn(net, IMAGES, train=False)
    sentence = (
        "Expected a model that evaluates by running statistics, got train=True for `norm_stem`: a fold is exact only "
        "at evaluation."
    )
    with pytest.raises(BadInput) as error:
        fold(net, variables, IMAGES, train=True)
    assert str(error.value) == sentence
    with pytest.raises(BadInput) as error:
        fold(net, variables, IMAGES, evaluate={"train": True})
    assert str(error.value) == sentence
    result = fold(net, variables, IMAGES, check=False)
    with pytest.raises(BadInput) as error:
        result(IMAGES, train=True)
    assert str(error.value) == sentence


def test_arguments_are_checked() -> None:
    net = Net(lambda x: norm(name="bn")(dense()(x)))
    variables = net.init(jax.random.key(0), ROWS)
    shape = jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype)
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: fold(net, variables),
            "Expected the inputs of a call of the model, got none. Give arrays; or with `check=False` shapes, such as "
            "`jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')`.",
        ),
        (
            lambda: fold(net, variables, shape),
            "Expected arrays to check the fold with, got shapes. Give arrays, or `check=False`.",
        ),
        (
            lambda: fold(net, variables, ROWS, form="both"),  # pyright: ignore
            "Expected `form` to be `model` or `variables`, got `both`. Write one of them.",
        ),
        (
            lambda: fold(net, variables, ROWS, tolerance=0.0),
            "Expected `tolerance` to be a positive number, got 0.0. Give one such as 0.1.",
        ),
        (
            lambda: fold(net.apply, variables, ROWS),  # pyright: ignore
            "Expected a Flax module, got a function. Pass the module; the call is built from it.",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(BadInput) as error:
            call()
        assert str(error.value) == sentence
    assert fold(net, variables, shape, check=False).difference is None


class Backwards(nn.Module):
    """A layer that reads its kernel the other way round."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.param("kernel", nn.initializers.lecun_normal(), (4, 4)).T


def test_a_fold_that_changes_outputs_is_found_and_taken_back() -> None:
    def body(x: jax.Array) -> jax.Array:
        for i in range(3):
            layer = Backwards(name=f"layer_{i}") if i == 1 else nn.Dense(4, name=f"layer_{i}")
            x = nn.relu(norm(name=f"norm_{i}")(layer(x)))
        return x

    result = folded(body)
    assert [row.how for row in result.report] == ["identity", "kept", "identity"]
    (reason,) = reasons(result).values()
    assert reason.startswith("The fold of `norm_1` changes the outputs by ") and reason.endswith("e-05.")
    assert result.difference is not None and result.difference < 1e-5
    net = Net(body)
    unchecked = fold(net, shaken(net.init(jax.random.key(0), ROWS)), ROWS, check=False)
    assert [row.notes for row in unchecked.report] == [
        (),
        ("Nothing shows that outputs are the last axis of the kernel of `layer_1`; check the fold.",),
        (),
    ]


def test_a_difference_without_a_cause_is_an_error() -> None:
    calls: list[int] = []

    def body(x: jax.Array) -> jax.Array:
        calls.append(0)
        return norm(name="bn")(dense()(x)) + len(calls)

    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), ROWS))
    with pytest.raises(FoldError) as error:
        fold(net, variables, ROWS)
    assert str(error.value).startswith("Expected outputs within ")
    assert str(error.value).endswith(
        " that no norm is the cause of. Look for operations that are random, or raise `tolerance`."
    )


def test_a_tolerance_of_ones_own() -> None:
    net = Net(lambda x: norm(name="bn")(Backwards(name="layer")(x)))
    variables = shaken(net.init(jax.random.key(0), ROWS))
    assert fold(net, variables, ROWS).report.folded == 0
    assert fold(net, variables, ROWS, tolerance=100.0).report.folded == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype: Any) -> None:
    def body(x: jax.Array) -> jax.Array:
        x = norm(name="bn", dtype=dtype)(nn.Conv(8, (3,), dtype=dtype, use_bias=False, name="conv")(x))
        return nn.Dense(3, dtype=dtype, name="head")(nn.relu(x)).astype(jnp.float32)

    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), POSITIONS))
    result = fold(net, variables, POSITIONS)
    assert hows(result) == {"bn": ("bias", "conv")}
    assert result.difference is not None and 0 < result.difference < 5e-2
    assert result(POSITIONS).dtype == jnp.float32


def test_half_precision_keeps_dtypes() -> None:
    def body(x: jax.Array) -> jax.Array:
        return norm(name="bn")(nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, name="dense")(x))

    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS)
    assert result(ROWS).dtype == net.apply(variables, ROWS).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(result.variables)} == {jnp.dtype(jnp.bfloat16)}
    assert result.report[0].notes == (
        "The kernel of `dense` is bfloat16 already; fold in float32, and round afterwards.",
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm, linen.BatchNorm])
def test_outputs_have_the_dtype_of_the_norm(kind: Any, affine: bool) -> None:
    def body(x: jax.Array) -> jax.Array:
        x = nn.Dense(4, dtype=jnp.bfloat16, name="dense")(x)
        return kind(use_running_average=True, use_scale=affine, use_bias=affine, name="bn")(x)

    net = Net(body)
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS)
    assert result.report.folded == 1
    assert result(ROWS).dtype == net.apply(variables, ROWS).dtype == (jnp.float32 if affine else jnp.bfloat16)


def test_float64() -> None:
    with jax.enable_x64(True):
        net = Net(lambda x: norm(name="bn", param_dtype=float)(dense(param_dtype=float)(x)))
        x = jnp.asarray(ROWS, jnp.float64)
        variables = shaken(net.init(jax.random.key(0), x))
        variables["batch_stats"] = jax.tree.map(lambda leaf: leaf.astype(float), variables["batch_stats"])
        result = fold(net, variables, x)
        assert result.difference is not None and result.difference < 1e-12
        assert result.report.folded == 1


def test_frozen_dicts_and_boxes_stay_what_they_are() -> None:
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    net = Net(lambda x: norm(name="bn")(nn.Dense(4, kernel_init=init, name="dense")(x)))
    variables = freeze(shaken(net.init(jax.random.key(0), ROWS)))
    result = fold(net, variables, ROWS)
    assert isinstance(result.variables, FrozenDict)
    box = result.variables["params"]["dense"]["kernel"]
    assert isinstance(box, nn.Partitioned) and box.names == (None, "model")
    np.testing.assert_allclose(result(ROWS), net.apply(variables, ROWS), rtol=1e-5, atol=1e-5)


class TwoMethods(nn.Module):
    """A module with `setup` and two methods."""

    def setup(self) -> None:
        self.dense, self.head = nn.Dense(4), nn.Dense(2)
        self.bn = norm()

    def encode(self, x: jax.Array, *, flip: bool = False) -> jax.Array:
        return self.bn(self.dense(-x if flip else x))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nn.relu(self.encode(x)))


def test_methods_are_those_of_the_model() -> None:
    net = TwoMethods()
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS)
    assert result.report.folded == 1
    for method in ("encode", TwoMethods.__call__):
        if method == "encode":
            found = result.model.apply(result.variables, ROWS, method="encode", flip=True)
            expected = net.apply(variables, ROWS, method="encode", flip=True)
        else:
            found, expected = result(ROWS), net.apply(variables, ROWS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for method in ("encode", TwoMethods.encode):
        partly = fold(net, variables, ROWS, method=method, flip=True)
        np.testing.assert_allclose(partly(ROWS), net.apply(variables, ROWS, method="encode", flip=True), atol=1e-5)
    with pytest.raises(BadInput) as error:
        fold(net, variables, ROWS, method=lambda self, x: x)
    assert str(error.value) == (
        "Expected `method` to be a method of the model, got the function `<lambda>`. Write its name."
    )
    with pytest.raises(AttributeError):
        result.model.decode  # noqa: B018


def test_inside_of_a_larger_model() -> None:
    net = TwoMethods()
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS)
    assert isinstance(result.model, nn.Module)
    outer = nn.Sequential([result.model, nn.relu])
    inside = {"params": {"layers_0": result.variables["params"]}}
    np.testing.assert_allclose(outer.apply(inside, ROWS), nn.relu(net.apply(variables, ROWS)), rtol=1e-5, atol=1e-5)


class Deep(nn.Module):
    """Layers inside `nn.jit` and `nn.remat`."""

    lift: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.lift(Block)(name="block")(x, None)[0]


@pytest.mark.parametrize("lift", [nn.jit, nn.remat])
def test_lifted_without_stacked_parameters(lift: Any) -> None:
    net = Deep(lift)
    variables = shaken(net.init(jax.random.key(0), ROWS))
    expected = net.apply(variables, ROWS)  # which `nn.jit` remembers
    result = fold(net, variables, ROWS)
    assert hows(result) == {"block/bn": ("identity", "block/dense")}
    for _ in range(2):
        np.testing.assert_allclose(result(ROWS), expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(net.apply(variables, ROWS), expected)


def test_a_norm_alone() -> None:
    net = norm()
    variables = shaken(net.init(jax.random.key(0), ROWS))
    result = fold(net, variables, ROWS)
    assert reasons(result) == {"": "`` follows an input of the model, not a layer."}
    np.testing.assert_allclose(result(ROWS), net.apply(variables, ROWS), rtol=1e-5, atol=1e-5)


def test_frozen_norms_and_running_statistics() -> None:
    for options in ({"frozen": True}, {"statistics": "running"}):
        body = lambda x, options=options: linen.BatchNorm(  # noqa: E731
            use_running_average=True, name="bn", **options
        )(dense()(x))
        assert hows(folded(body)) == {"bn": ("identity", "dense")}


def test_table() -> None:
    result = folded(lambda x: nn.LayerNorm(name="ln")(norm(name="bn")(dense()(x))))
    assert str(result.report) == (
        "path  into   how       reason\n"
        "bn    dense  identity\n"
        "ln           kept      `ln` takes its statistics from its input (kind `layer`)."
    )
    assert isinstance(result.report[:1], FoldReport) and len(result.report[:1]) == 1
    assert result.report.advice[1] == ("Fold in float32, and round the folded weights to bfloat16 or int8 afterwards.")
