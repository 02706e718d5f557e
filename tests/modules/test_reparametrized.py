"""Layers whose kernel is normalized, in Linen and NNX: the raw kernel stays, and Flax's transformations work."""

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx

from normlab import kernels, linen, nnx

KEY = jax.random.key(0)
NORMS = ["standardize", "scaled_standardize", "centralize", "weight_norm", "spectral_norm"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normal values."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X, DY = normal(4, 3), normal(4, 2, seed=1)


def dense(norm: str, **options: Any) -> tuple[linen.Reparametrized, Any]:
    """A dense layer of Linen, and variables whose norm's parameters are not at their start."""
    model = linen.Reparametrized(nn.Dense(2), norm, **options)
    variables = model.init(KEY, X, update_stats=True)
    other = {name: 1.5 * value for name, value in variables["params"].items() if name != "layer"}
    return model, {**variables, "params": {**variables["params"], **other}}


def as_nnx(norm: str, variables: Any) -> nnx.Reparametrized:
    """The same layer of NNX."""
    model = nnx.Reparametrized(flax_nnx.Linear(3, 2, rngs=flax_nnx.Rngs(0)), norm)
    state = flax_nnx.state(model)
    flax_nnx.replace_by_pure_dict(state, {**variables["params"], **variables.get("batch_stats", {})})
    flax_nnx.update(model, state)
    return model


def composed(norm: str, params: Any, state: Any) -> jax.Array:
    """The output by the pure function."""
    own = {name: params[name] for name in kernels.get(norm).parameter_names}
    kernel, _ = kernels.get(norm)(params["layer"]["kernel"], own, state, train=True)
    return X @ kernel + params["layer"]["bias"]


@pytest.mark.parametrize("norm", NORMS)
def test_linen_is_the_composed_function_and_writes_no_parameter(norm: str) -> None:
    model, variables = dense(norm)
    state = variables.get("batch_stats", {})
    raw = nn.Dense(2).init(KEY, X)["params"]["kernel"]
    chex.assert_shape(variables["params"]["layer"]["kernel"], raw.shape)

    def loss(params: Any) -> Any:
        y, after = model.apply({"params": params, **{"batch_stats": state}}, X, update_stats=True, mutable=True)
        return (y * DY).sum(), after

    slopes, after = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = jax.jit(jax.grad(lambda params: (composed(norm, params, state) * DY).sum()))(variables["params"])
    chex.assert_trees_all_close(slopes, expected, **CLOSE)
    chex.assert_trees_all_equal(after["params"], variables["params"])
    assert all(float(jnp.abs(slopes[name]).max()) > 0 for name in kernels.get(norm).parameter_names)


@pytest.mark.parametrize("norm", NORMS)
def test_nnx_is_the_composed_function_and_writes_no_parameter(norm: str) -> None:
    _, variables = dense(norm)
    model, state = as_nnx(norm, variables), variables.get("batch_stats", {})
    before = flax_nnx.to_pure_dict(flax_nnx.state(model, flax_nnx.Param))

    @flax_nnx.jit
    def step(model: Any) -> Any:
        return flax_nnx.grad(lambda model: (model(X) * DY).sum())(model)

    slopes = flax_nnx.to_pure_dict(step(model))
    expected = jax.jit(jax.grad(lambda params: (composed(norm, params, state) * DY).sum()))(variables["params"])
    chex.assert_trees_all_close(slopes, expected, **CLOSE)
    np.testing.assert_allclose(model(X), composed(norm, variables["params"], state), rtol=0.1, atol=0.1)
    chex.assert_trees_all_equal(flax_nnx.to_pure_dict(flax_nnx.state(model, flax_nnx.Param)), before)
    chex.assert_trees_all_equal(before, variables["params"])


def test_both_follow_the_singular_vector_in_training_alone() -> None:
    norm = "spectral_norm:initial_steps=0"
    model, variables = dense(norm)
    twin = as_nnx(norm, variables)
    kernel, u = variables["params"]["layer"]["kernel"], variables["batch_stats"]["u"]
    np.testing.assert_array_equal(u, kernels.get(norm).state(kernel)["u"])  # not updated while it is made
    y, after = model.apply(variables, X, update_stats=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(after["batch_stats"]["u"], u)
    twin.eval()
    np.testing.assert_allclose(twin(X), y, **CLOSE)
    np.testing.assert_array_equal(twin.u[...], u)
    trained, after = model.apply(variables, X, update_stats=True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, y, **CLOSE)
    assert float(jnp.abs(after["batch_stats"]["u"] - u).max()) > 1e-3
    flax_nnx.view(twin, use_running_average=True)(X)
    np.testing.assert_array_equal(twin.u[...], u)
    twin(X, update_stats=True)
    np.testing.assert_allclose(twin.u[...], after["batch_stats"]["u"], **CLOSE)
    twin.train()
    for _ in range(60):
        twin(X)
    np.testing.assert_allclose(np.linalg.norm(twin.plain().kernel[...], 2), 1, rtol=1e-4)


def test_the_mode_can_be_given_to_the_module() -> None:
    for train in (False, True):
        model, variables = dense("spectral_norm:initial_steps=0", update_stats=train)
        _, after = model.apply(variables, X, mutable=["batch_stats"])
        moved = float(jnp.abs(after["batch_stats"]["u"] - variables["batch_stats"]["u"]).max())
        assert (moved > 1e-3) == train
    with pytest.raises(ValueError, match="`update_stats` in the constructor or in the call, as 'spectral_norm' has"):
        linen.Reparametrized(nn.Dense(2), "spectral_norm").init(KEY, X)
    with pytest.raises(TypeError, match="`update_stats` to be True, False or None"):
        linen.Reparametrized(nn.Dense(2), "standardize").init(KEY, X, update_stats=64)


class Inline(nn.Module):
    """Layers made where they are called."""

    norm: str = "weight_norm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        x = nn.relu(linen.Reparametrized(nn.Dense(5), self.norm, update_stats=False)(x))
        return linen.Reparametrized(nn.Dense(2), self.norm, update_stats=False)(x)


class InSetup(nn.Module):
    """Layers made in `setup`."""

    def setup(self) -> None:
        """Make the layers."""
        self.first = linen.Reparametrized(nn.Dense(5), "weight_norm")
        self.rest = [linen.Reparametrized(nn.Dense(2), "weight_norm")]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        return self.rest[0](nn.relu(self.first(x)))


def test_trees() -> None:
    def shapes(model: nn.Module) -> Any:
        return jax.tree.map(jnp.shape, jax.eval_shape(model.init, KEY, X)["params"], is_leaf=lambda a: hasattr(a, "at"))

    dense = [{"bias": (5,), "kernel": (3, 5)}, {"bias": (2,), "kernel": (5, 2)}]
    assert shapes(Inline()) == {
        "Dense_0": dense[0],
        "Dense_1": dense[1],
        "Reparametrized_0": {"g": (5,)},
        "Reparametrized_1": {"g": (2,)},
    }
    assert shapes(InSetup()) == {"first": {"g": (5,), "layer": dense[0]}, "rest_0": {"g": (2,), "layer": dense[1]}}
    assert shapes(Inline("none")) == {"Dense_0": dense[0], "Dense_1": dense[1]}


def test_weight_norm_changes_nothing_at_the_start() -> None:
    model = InSetup()
    variables = model.init(KEY, X)
    plain = nn.Dense(5).apply({"params": variables["params"]["first"]["layer"]}, X)
    expected = nn.Dense(2).apply({"params": variables["params"]["rest_0"]["layer"]}, nn.relu(plain))
    np.testing.assert_allclose(model.apply(variables, X), expected, **CLOSE)
    np.testing.assert_allclose(model.init_with_output(KEY, X)[0], expected, **CLOSE)


IMAGES = normal(2, 5, 6)
LAYERS: dict[str, tuple[nn.Module, Any, Any, tuple[int, ...]]] = {
    "grouped": (
        nn.Conv(4, (3,), feature_group_count=2),
        lambda rngs: flax_nnx.Conv(6, 4, (3,), feature_group_count=2, rngs=rngs),
        IMAGES,
        (4,),
    ),
    "depthwise": (
        nn.Conv(6, (3,), feature_group_count=6),
        lambda rngs: flax_nnx.Conv(6, 6, (3,), feature_group_count=6, rngs=rngs),
        IMAGES,
        (6,),
    ),
    "transposed": (
        nn.ConvTranspose(4, (3,)),
        lambda rngs: flax_nnx.ConvTranspose(6, 4, (3,), rngs=rngs),
        IMAGES,
        (4,),
    ),
    "general": (
        nn.DenseGeneral((2, 4), axis=(-2, -1)),
        lambda rngs: flax_nnx.LinearGeneral((5, 6), (2, 4), axis=(-2, -1), rngs=rngs),
        IMAGES,
        (8,),
    ),
    "half": (
        nn.Dense(4, dtype=jnp.bfloat16),
        lambda rngs: flax_nnx.Linear(6, 4, dtype=jnp.bfloat16, rngs=rngs),
        IMAGES,
        (4,),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str) -> None:
    layer, make, x, gain = LAYERS[kind]
    model = linen.Reparametrized(layer, "scaled_standardize")
    variables = model.init(KEY, x)
    kernel = variables["params"]["layer"]["kernel"]
    assert variables["params"]["gain"].shape == gain
    flat = np.asarray(kernel, np.float64).reshape(-1, gain[0])
    wanted = (flat - flat.mean(0)) / np.sqrt(len(flat) * flat.var(0))
    expected = layer.apply({"params": {**variables["params"]["layer"], "kernel": wanted.reshape(kernel.shape)}}, x)
    found = model.apply(variables, x)
    assert found.dtype == expected.dtype == (jnp.bfloat16 if kind == "half" else jnp.float32)
    tolerance = {"rtol": 0.02, "atol": 0.02} if kind == "half" else CLOSE
    chex.assert_trees_all_close(found, expected, **tolerance)
    twin = nnx.Reparametrized(make(flax_nnx.Rngs(0)), "scaled_standardize")
    twin.layer.kernel[...] = kernel
    chex.assert_trees_all_close(twin(x), expected, **tolerance)
    assert twin.gain.shape == gain


@pytest.mark.parametrize(
    ("ours", "flax", "message"),
    [
        (nn.Embed(3, 2), flax_nnx.Embed(3, 2, rngs=flax_nnx.Rngs(0)), "a parameter `kernel` of its own, got Embed"),
        (nn.LSTMCell(3), flax_nnx.LSTMCell(3, 3, rngs=flax_nnx.Rngs(0)), "of its own, got LSTMCell"),
        (
            nn.MultiHeadDotProductAttention(1),
            flax_nnx.MultiHeadAttention(1, 3, decode=False, rngs=flax_nnx.Rngs(0)),
            "of its own, got MultiHead.*Attention. Wrap the dense layers",
        ),
        (
            nn.ConvTranspose(2, (3,), transpose_kernel=True),
            flax_nnx.ConvTranspose(3, 2, (3,), transpose_kernel=True, rngs=flax_nnx.Rngs(0)),
            "ConvTranspose with `transpose_kernel=False`, got True",
        ),
        (
            nn.Einsum((3, 2), "ab,bc->ac"),
            flax_nnx.Einsum("ab,bc->ac", (3, 2), rngs=flax_nnx.Rngs(0)),
            "ends in its output features, got Einsum. Wrap",
        ),
        (
            nn.DenseGeneral(2, batch_dims=(0,)),
            flax_nnx.LinearGeneral(3, 2, batch_axis={0: 4}, rngs=flax_nnx.Rngs(0)),
            "General with batch dimensions. Wrap",
        ),
    ],
    ids=["embed", "cell", "attention", "transpose_kernel", "einsum", "batch_dims"],
)
def test_layers_that_have_no_kernel_to_normalize_are_refused(ours: Any, flax: Any, message: str) -> None:
    x = jnp.ones((4, 3), jnp.int32) if isinstance(ours, nn.Embed) else X
    for make in (
        lambda: linen.Reparametrized(ours).init(KEY, x),
        lambda: nnx.Reparametrized(flax),
    ):
        with pytest.raises(ValueError, match=message) as info:
            make()
        assert "\n" not in str(info.value)


def test_projections_of_attention_in_nnx() -> None:
    attention = flax_nnx.MultiHeadAttention(2, 6, decode=False, rngs=flax_nnx.Rngs(0))
    expected = attention(IMAGES)
    attention.query = nnx.Reparametrized(attention.query, "weight_norm")
    attention.out = nnx.Reparametrized(attention.out, "weight_norm")
    np.testing.assert_allclose(attention(IMAGES), expected, **CLOSE)
    assert (attention.query.g.shape, attention.out.g.shape) == ((6,), (6,))


@pytest.mark.parametrize("norm", ["standardize", "scaled_standardize", "weight_norm"])
def test_standardized_layers(norm: str) -> None:
    pairs = (
        (linen.StandardizedConv(4, (3,), norm=norm), nn.Conv(4, (3,)), nnx.StandardizedConv, (6, 4, (3,))),
        (linen.StandardizedDense(4, norm=norm), nn.Dense(4), nnx.StandardizedLinear, (6, 4)),
    )
    for model, layer, kind, sizes in pairs:
        variables = model.init(KEY, IMAGES)
        names = set(kernels.get(norm).parameter_names)
        assert set(variables["params"]) == {"kernel", "bias"} | names
        kernel, _ = kernels.get(norm)(
            variables["params"]["kernel"], {name: 2 * variables["params"][name] for name in names}
        )
        expected = layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(4)}}, IMAGES)
        doubled = {name: value * (2 if name in names else 1) for name, value in variables["params"].items()}
        y, after = model.apply({"params": doubled}, IMAGES, mutable=["params"])
        np.testing.assert_allclose(y, expected, **CLOSE)
        chex.assert_trees_all_equal(after["params"], doubled)
        twin = kind(*sizes, norm=norm, rngs=flax_nnx.Rngs(0))
        state = flax_nnx.state(twin)
        flax_nnx.replace_by_pure_dict(state, doubled)
        flax_nnx.update(twin, state)
        np.testing.assert_allclose(flax_nnx.jit(lambda model, x: model(x))(twin, IMAGES), expected, **CLOSE)
        chex.assert_trees_all_equal(flax_nnx.to_pure_dict(flax_nnx.state(twin)), doubled)
    for make in (
        lambda: linen.StandardizedDense(4, norm="spectral_norm").init(KEY, X),
        lambda: nnx.StandardizedLinear(3, 4, norm="spectral_norm", rngs=flax_nnx.Rngs(0)),
    ):
        with pytest.raises(ValueError, match=r"without state, got 'spectral_norm'\. Use `Reparametrized`"):
            make()


def test_the_numbers_are_those_of_flax() -> None:
    ours, variables = dense("weight_norm:scale_init='ones'")
    layer = variables["params"]["layer"]
    theirs = nn.WeightNorm(nn.Dense(2))
    params = {"layer_instance": layer, "layer_instance/kernel/scale": variables["params"]["g"]}
    np.testing.assert_allclose(ours.apply(variables, X), theirs.apply({"params": params}, X), **CLOSE)
    ours, variables = dense("spectral_norm:initial_steps=0")
    theirs, u = nn.SpectralNorm(nn.Dense(2)), variables["batch_stats"]["u"]
    stats = {"layer_instance/kernel/u": u.reshape(1, 2), "layer_instance/kernel/sigma": jnp.ones(())}
    flax = {"params": {"layer_instance": variables["params"]["layer"]}, "batch_stats": stats}
    for train in (False, True):
        found, after = ours.apply(variables, X, update_stats=train, mutable=["batch_stats"])
        expected, stats = theirs.apply(flax, X, update_stats=train, mutable=["batch_stats"])
        np.testing.assert_allclose(found, expected, **CLOSE)
        np.testing.assert_allclose(
            after["batch_stats"]["u"], stats["batch_stats"]["layer_instance/kernel/u"].ravel(), **CLOSE
        )


class Block(nn.Module):
    """Layers with parameters and with state, for Linen's transformations."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Apply the layers."""
        x = x + linen.Reparametrized(nn.Dense(3), "scaled_standardize")(x)
        return x + linen.Reparametrized(nn.Dense(3), "spectral_norm", update_stats=True)(x), None


def test_linen_scan_vmap_remat_and_jit() -> None:
    axes, split = {"params": 0, "batch_stats": 0}, {"params": True}
    layers = nn.scan(Block, variable_axes=axes, split_rngs=split, length=2)()
    variables = layers.init(KEY, X)
    (y, _), after = layers.apply(variables, X, mutable=["batch_stats"])
    h, states = X, []
    for i in range(2):
        (h, _), state = Block().apply(jax.tree.map(lambda a, i=i: a[i], variables), h, mutable=["batch_stats"])
        states.append(state)
    np.testing.assert_allclose(y, h, **CLOSE)
    chex.assert_trees_all_close(after, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), **CLOSE)
    models = nn.vmap(Block, variable_axes=axes, split_rngs=split)()
    (ys, _), _ = models.apply(variables, jnp.stack([X, 2 * X]), mutable=["batch_stats"])
    one = jax.tree.map(lambda a: a[1], variables)
    expected, updated = Block().apply(one, 2 * X, mutable=["batch_stats"])
    np.testing.assert_allclose(ys[1], expected[0], **CLOSE)
    for lift in (nn.remat, nn.jit):
        (found, _), state = lift(Block)().apply(one, 2 * X, mutable=["batch_stats"])
        chex.assert_trees_all_close((found, state), (expected[0], updated), **CLOSE)


class Layers(flax_nnx.Module):
    """Layers with parameters and with state, for NNX's transformations."""

    def __init__(self, rngs: flax_nnx.Rngs) -> None:
        """Make the layers."""
        self.first = nnx.Reparametrized(flax_nnx.Linear(3, 3, rngs=rngs), "scaled_standardize")
        self.second = nnx.Reparametrized(flax_nnx.Linear(3, 3, rngs=rngs), "spectral_norm")

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        return self.second(self.first(x))


def test_nnx_scan_vmap_split_and_remat() -> None:
    @flax_nnx.split_rngs(splits=2)
    @flax_nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: flax_nnx.Rngs) -> Layers:
        return Layers(rngs)

    def one(models: Any, i: int) -> Any:
        definition, state = flax_nnx.split(models)
        return flax_nnx.merge(definition, jax.tree.map(lambda a: a[i], state))

    models = make(flax_nnx.Rngs(0))
    alone = [one(models, i) for i in range(2)]
    scan = flax_nnx.scan(lambda x, model: model(x), in_axes=(flax_nnx.Carry, 0), out_axes=flax_nnx.Carry)
    np.testing.assert_allclose(scan(X, models), alone[1](alone[0](X)), **CLOSE)
    chex.assert_trees_all_close(*(flax_nnx.state(model) for model in (one(models, 1), alone[1])), **CLOSE)
    ys = flax_nnx.vmap(lambda model, x: model(x), in_axes=(0, None), out_axes=0)(models, X)
    np.testing.assert_allclose(ys[0], alone[0](X), **CLOSE)
    remat = flax_nnx.remat(lambda model, x: model(x))
    np.testing.assert_allclose(remat(one(models, 0), X), one(models, 0)(X), **CLOSE)


def test_a_checkpoint_holds_all_of_the_state(tmp_path: Path) -> None:
    variables, twin = Block().init(KEY, X), Layers(flax_nnx.Rngs(0))
    twin(X)
    state = flax_nnx.to_pure_dict(flax_nnx.state(twin))
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree in (("linen", variables), ("nnx", state)):
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            chex.assert_trees_all_equal(checkpointer.restore(tmp_path / name, jax.eval_shape(lambda t=tree: t)), tree)
        restored = checkpointer.restore(tmp_path / "nnx", state)
    fresh = Layers(flax_nnx.Rngs(1))
    kept = flax_nnx.state(fresh)
    flax_nnx.replace_by_pure_dict(kept, restored)
    flax_nnx.update(fresh, kept)
    chex.assert_trees_all_equal(fresh(X), twin(X))


def test_a_model_exports_with_a_symbolic_batch() -> None:
    model = Block()
    variables = model.init(KEY, X)
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(lambda variables, x: model.apply(variables, x, mutable="batch_stats")))(
        variables, shape
    )
    for rows in (2, 5):
        x = normal(rows, 3, seed=rows)
        expected = model.apply(variables, x, mutable="batch_stats")
        chex.assert_trees_all_close(exported.call(variables, x), expected, **CLOSE)


def test_boxed_parameters_keep_their_metadata() -> None:
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = linen.Reparametrized(nn.Dense(2, kernel_init=init), "weight_norm")
    variables = model.init(KEY, X)
    assert variables["params"]["layer"]["kernel"].names == (None, "model")
    np.testing.assert_allclose(model.apply(variables, X), model.apply(nn.unbox(variables), X), **CLOSE)
    folded = kernels.fold(linen.Reparametrized(nn.Dense(2, kernel_init=init), "standardize"), variables, X)
    assert folded["params"]["layer"]["kernel"].names == (None, "model")
