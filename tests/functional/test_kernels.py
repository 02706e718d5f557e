"""Norms of kernels as pure functions and as values: numbers, gradients, edges, strings, and other libraries."""

import copy
import functools
import pickle
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import functional as F
from normlab import kernels
from normlab.functional.kernels import KernelNorm, SpectralNorm, Standardize, WeightNorm, column_norms, initial_u
from normlab.notation import UnknownNorm
from tests.support import kernel_reference

pytestmark = pytest.mark.usefixtures("strict")

NORMS = [
    "none",
    "standardize",
    "standardize:unbiased=True",
    "standardize:epsilon=0.01,epsilon_outside=True",
    "scaled_standardize:activation_gain=1.5",
    "scaled_standardize:epsilon=0.9",
    "centralize",
    "weight_norm",
    "weight_norm:scale_init='ones'",
    "spectral_norm",
    "spectral_norm:steps=3",
    "spectral_norm:coefficient=0.5",
    "spectral_norm:coefficient=100.0",
]
SHAPES = [(3, 2), (3, 2, 2, 6), (3, 1, 4)]
"""Dense; a convolution; a depthwise one."""

RNG = np.random.default_rng(0)
W = np.array([[0.5, -1.0], [1.5, 0.3], [-0.4, 0.8]])


def variables_of(norm: KernelNorm, kernel: Any) -> dict[str, np.ndarray]:
    """Random parameters and state."""
    made = {**norm.parameters(kernel), **norm.state(kernel)}
    drawn = {name: 0.5 + RNG.random(value.shape) for name, value in made.items()}
    return {name: value / np.linalg.norm(value) if name == "u" else value for name, value in drawn.items()}


def parts(norm: KernelNorm, variables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state."""
    names = norm.parameter_names, norm.state_names
    parameters, state = ({name: variables[name] for name in part} for part in names)
    return parameters, state


def single(tree: Any) -> Any:
    """The same numbers in float32."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", NORMS)
def test_values_and_gradients_are_those_of_the_reference(text: str, shape: tuple[int, ...]) -> None:
    norm, kernel, dy = kernels.get(text), RNG.normal(size=shape), RNG.normal(size=shape)
    variables = variables_of(norm, jnp.zeros(shape))
    expected, state = kernel_reference.NORMS[norm.name](kernel, variables, kernel, **options(norm))
    parameters, before = parts(norm, variables)

    @jax.jit
    def run(kernel: Any, parameters: Any, before: Any) -> Any:
        y, back, after = jax.vjp(lambda k, p: norm(k, p, before, train=True), kernel, parameters, has_aux=True)
        return y, after, back(jnp.asarray(dy, jnp.float32))

    y, after, (dkernel, dparameters) = run(*single((kernel, parameters, before)))
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-6)
    assert after.keys() == state.keys()
    for name, value in after.items():
        np.testing.assert_allclose(value, state[name], rtol=2e-5, atol=2e-6)
    direction = RNG.normal(size=shape), {name: RNG.normal(size=value.shape) for name, value in parameters.items()}
    slope = (kernel_reference.slope(norm.name, kernel, variables, direction, **options(norm)) * dy).sum()
    found = np.sum(dkernel * direction[0]) + sum(np.sum(dparameters[n] * d) for n, d in direction[1].items())
    np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-4)


def options(norm: KernelNorm) -> dict[str, Any]:
    """The options that the reference knows."""
    chosen = dict(vars(norm))
    if norm.name == "spectral_norm":
        del chosen["epsilon"]
    return chosen


VECTORS = {
    "standardize": "-.04295332 -1.36204997 1.24564632 .35149677 -1.20269300 1.01055320",
    "standardize:unbiased=True,epsilon_outside=True": (
        "-.03507116 -1.11210684 1.01706370 .28699531 -.98199254 .82511152"
    ),
    "weight_norm": ".61313934 -.38014296 1.83941802 .11404289 -.49051147 .30411437",
    "spectral_norm": ".37494109 -.74988218 1.12482327 .22496465 -.29995287 .59990575",
}


@pytest.mark.parametrize("text", VECTORS)
def test_known_numbers_in_float64(text: str) -> None:
    with jax.enable_x64(True):
        given = {"g": jnp.array([2.0, 0.5]), "u": jnp.array([0.6, 0.8])}
        norm = kernels.get(text)
        y, state = norm(jnp.asarray(W), *parts(norm, given), train=True)
        np.testing.assert_allclose(y.ravel(), [float(one) for one in VECTORS[text].split()], atol=6e-9)
        if norm.stateful:
            np.testing.assert_allclose(state["u"], [0.74557121, 0.66642596], atol=6e-9)
            np.testing.assert_allclose(W[0, 0] / y[0, 0], 1.33354282, atol=2e-8)
            many, _ = F.spectral_norm(jnp.asarray(W), given["u"], steps=30)
            np.testing.assert_allclose(W[0, 0] / many[0, 0], 1.67010276, atol=2e-8)


@functools.partial(jax.jit, static_argnums=0)
def value_and_slopes(norm: KernelNorm, kernel: Any) -> tuple[Any, Any, Any]:
    """The new kernel, and the gradients of its product with fixed numbers."""
    parameters, state = norm.parameters(kernel), norm.state(kernel)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=kernel.shape), jnp.float32)
    new = norm(kernel, parameters, state)[0]
    return new, *jax.grad(lambda k, p: (norm(k, p, state)[0] * dy).sum(), (0, 1))(kernel, parameters)


@pytest.mark.parametrize("text", NORMS)
def test_zeros_constant_filters_and_single_weights_are_finite(text: str) -> None:
    norm = kernels.get(text)
    mixed = jnp.asarray([[0.0, 0.7, 1.0], [0.0, 0.7, -2.0]])
    for kernel in (mixed, jnp.zeros((2, 3)), jnp.full((2, 3), 0.1), jnp.asarray([[2.0, 0.0]])):
        found = value_and_slopes(norm, kernel)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
        if norm.name not in ("none", "weight_norm", "spectral_norm"):
            constant = jnp.ptp(kernel, axis=0) == 0
            np.testing.assert_array_equal(found[0][:, constant], 0)


def test_equal_weights_leave_no_rounding() -> None:
    equal = jnp.broadcast_to(jnp.asarray([[0.1, 0.7, 1e4 / 3, -1e-7 / 3]]), (49, 4))
    np.testing.assert_array_equal(F.centralize(equal), 0)


def test_a_small_variance_is_divided_by_a_constant_with_scaled_standardization() -> None:
    kernel = jnp.asarray(W, jnp.float32) / 1000
    np.testing.assert_allclose(F.scaled_standardize(kernel), 100 * F.centralize(kernel), rtol=1e-5)


def test_weights_of_zero_have_no_gradient_with_weight_norm() -> None:
    new, slope, gains = value_and_slopes(WeightNorm("ones"), jnp.asarray([[0.0, 1.0], [0.0, 2.0]]))
    np.testing.assert_array_equal(new[:, 0], 0)
    np.testing.assert_array_equal(slope[:, 0], 0)
    assert gains["g"][0] == 0 != gains["g"][1]


def test_a_kernel_of_zeros_keeps_its_vector_with_spectral_norm() -> None:
    norm, zeros = SpectralNorm(), jnp.zeros((3, 2))
    state = norm.state(zeros)
    np.testing.assert_allclose(jnp.linalg.norm(state["u"]), 1, rtol=1e-6)
    for kernel in (zeros, jnp.full((3, 2), jnp.nan)):
        new, after = norm(kernel, {}, state, train=True)
        np.testing.assert_array_equal(after["u"], state["u"])
        np.testing.assert_array_equal(new, kernel)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("text", ["weight_norm:scale_init='ones'", "spectral_norm"])
def test_magnitude_does_not_matter(text: str, size: float) -> None:
    norm, kernel = kernels.get(text), jnp.asarray(RNG.normal(size=(3, 2, 4)), jnp.float32)
    state, parameters = norm.state(kernel), norm.parameters(kernel)
    np.testing.assert_allclose(norm.state(kernel * size).get("u", 0), state.get("u", 0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        norm(kernel * size, parameters, state)[0], norm(kernel, parameters, state)[0], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(column_norms(kernel * size) / size, column_norms(kernel), rtol=1e-5)


def test_squares_beyond_the_dtype_give_nan() -> None:
    kernel = jnp.asarray([[1e25], [-1e25]])
    for text in ("standardize", "standardize:epsilon_outside=True", "scaled_standardize"):
        norm = kernels.get(text)
        assert bool(jnp.isnan(norm(kernel, norm.parameters(kernel))[0]).all())


def test_standardized_weights_know_no_scale_and_no_shift() -> None:
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)
    plain = F.standardize(kernel, epsilon=0.0)
    np.testing.assert_allclose(F.standardize(1e-6 * kernel, epsilon=0.0), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(F.standardize(kernel + 100, epsilon=0.0), plain, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(plain.std((0, 1, 2)), 1, rtol=1e-5)
    outside = F.standardize(jnp.zeros((2, 1)), epsilon=0.0, epsilon_outside=True)
    np.testing.assert_array_equal(outside, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("text", NORMS)
def test_half_precision_is_rounded_once(text: str, dtype: Any) -> None:
    norm, kernel = kernels.get(text), jnp.asarray(RNG.normal(size=(3, 3, 20, 2)), dtype)
    parameters, state = norm.parameters(kernel), norm.state(kernel)
    assert {p.dtype for p in parameters.values()} <= {jnp.dtype(dtype)}
    assert {s.dtype for s in state.values()} <= {jnp.dtype(jnp.float32)}
    new, _ = norm(kernel, parameters, state)
    wide, _ = norm(*single((kernel, parameters, state)))
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, wide.astype(dtype))


def test_the_iteration_finds_the_largest_singular_value() -> None:
    kernel = jnp.asarray(RNG.normal(size=(3, 3, 4, 6)), jnp.float32)
    largest = np.linalg.svd(np.asarray(kernel).reshape(-1, 6), compute_uv=False)[0]
    new, u = F.spectral_norm(kernel, initial_u(kernel, steps=50), steps=50)
    np.testing.assert_allclose(kernel[0, 0, 0, 0] / new[0, 0, 0, 0], largest, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(u), 1, rtol=1e-6)
    bounded, _ = F.spectral_norm(kernel, u, coefficient=2 * float(largest))
    np.testing.assert_allclose(bounded, kernel, rtol=1e-6)
    half, _ = F.spectral_norm(kernel, u, coefficient=float(largest) / 2)
    np.testing.assert_allclose(half, kernel / 2, rtol=1e-5)


def test_state_is_replaced_in_training_alone() -> None:
    norm, kernel = SpectralNorm(initial_steps=0), jnp.asarray(W, jnp.float32)
    state = norm.state(kernel)
    evaluated, kept = norm(kernel, {}, state)
    trained, after = norm(kernel, {}, state, train=True)
    np.testing.assert_array_equal(evaluated, trained)
    assert kept is state
    assert float(jnp.abs(after["u"] - state["u"]).max()) > 1e-3
    assert norm.state(kernel)["u"].tolist() == state["u"].tolist()
    closer = SpectralNorm().state(kernel)["u"]
    np.testing.assert_allclose(jnp.abs(closer @ np.linalg.svd(W)[2][0].astype(np.float32)), 1, rtol=1e-4)


@pytest.mark.parametrize("text", NORMS)
def test_strings_and_pickles_round_trip(text: str) -> None:
    norm = kernels.get(text)
    assert str(norm) == text and repr(norm) == f"KernelNorm({text!r})"
    assert kernels.get(text) == norm == pickle.loads(pickle.dumps(norm)) == copy.deepcopy(norm) == kernels.get(norm)
    assert hash(kernels.get(text)) == hash(norm)


def test_defaults_are_left_out_and_options_are_over_those_of_the_string() -> None:
    assert kernels.get("standardize:epsilon=1e-5") == kernels.get("standardize") == Standardize()
    assert kernels.get("standardize:unbiased=True", unbiased=False) == Standardize()
    assert str(kernels.get(Standardize(), epsilon=0.1)) == "standardize:epsilon=0.1"


def test_activation_gains_by_name() -> None:
    kernel, gain = jnp.asarray(W, jnp.float32), {"gain": jnp.ones(2)}
    named, _ = kernels.get("scaled_standardize:activation_gain=relu")(kernel, gain)
    np.testing.assert_array_equal(named, F.scaled_standardize(kernel, activation_gain=kernels.ACTIVATION_GAINS["relu"]))
    x = RNG.normal(size=200_000)
    for name, function in (("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)):
        np.testing.assert_allclose(kernels.ACTIVATION_GAINS[name] * function(x).std(), 1, rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kernels.get("weightnorm"), UnknownNorm, "Did you mean 'weight_norm'"),
        (lambda: kernels.get("standardize:epsilom=1e-3"), ValueError, "Did you mean 'epsilon'"),
        (lambda: kernels.get(Standardize(), steps=2), ValueError, "option of Standardize, got 'steps'"),
        (lambda: kernels.get("standardize:epsilon=64"), ValueError, "`epsilon` to lie in"),
        (lambda: kernels.get("standardize:unbiased=3"), TypeError, "`unbiased` to be True, False"),
        (lambda: kernels.get("weight_norm:scale_init=one"), ValueError, "'norm' or 'ones', got 'one'"),
        (lambda: kernels.get("spectral_norm:steps=0"), ValueError, "`steps` to be a whole number from 1 on, got 0"),
        (lambda: kernels.get("spectral_norm:initial_steps=1.5"), ValueError, "`initial_steps` to be a whole number"),
        (lambda: kernels.get("spectral_norm:coefficient=0"), ValueError, "`coefficient` to be a positive number"),
        (lambda: kernels.get("scaled_standardize:activation_gain=rel"), UnknownNorm, "Did you mean 'relu'"),
        (lambda: kernels.get("scaled_standardize:activation_gain=None"), TypeError, "`activation_gain` to be a number"),
        (lambda: kernels.get("standardize")(jnp.ones(3)), ValueError, "as the last of two axes or more, got shape"),
        (lambda: kernels.get("standardize")(jnp.ones((3, 2), complex)), TypeError, "`kernel` to be real"),
        (
            lambda: kernels.get("weight_norm")(jnp.ones((3, 2))),
            ValueError,
            r"parameters of 'weight_norm' to be \['g'\]",
        ),
        (lambda: kernels.get("spectral_norm")(jnp.ones((3, 2))), ValueError, r"state of 'spectral_norm' to be \['u'\]"),
        (lambda: F.weight_norm(jnp.ones((3, 2)), jnp.ones(3)), ValueError, r"`g` to have shape \(2,\)"),
        (lambda: F.spectral_norm(jnp.ones((3, 2)), jnp.ones(3)), ValueError, r"`u` to have shape \(2,\)"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as info:
        make()
    assert "\n" not in str(info.value)


@dataclass(frozen=True, repr=False)
class Doubled(KernelNorm):
    """A third party's norm."""

    times: int = 2

    name: ClassVar[str] = "doubled"
    title: ClassVar[str] = "doubled"

    def normalize(self, kernel: Any, parameters: Any, state: Any, train: bool) -> Any:
        """Multiply."""
        return self.times * kernel, {}


def test_a_norm_of_a_third_party_joins() -> None:
    assert kernels.register(Doubled) is Doubled
    try:
        norm = kernels.get("doubled:times=3")
        assert pickle.loads(pickle.dumps(norm)) == norm and str(norm) == "doubled:times=3"
        np.testing.assert_array_equal(norm(jnp.ones((2, 2)))[0], 3)
        with pytest.raises(ValueError, match="got 'doubled', which is registered"):
            kernels.register(Doubled)
    finally:
        kernels.unregister("doubled")
    assert "doubled" not in kernels.names()
    with pytest.raises(ValueError, match="identifier, got 'a b'"):
        kernels.register(type("Odd", (Doubled,), {"name": "a b"}))


def test_torch_gives_the_same_kernels_and_gradients() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    kernel = RNG.normal(size=(3, 3, 2, 4))
    dy = RNG.normal(size=kernel.shape)
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(2, 4, 3, dtype=torch.float64))
    original = conv.parametrizations.weight
    original.original1.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
    original.original0.data = torch.tensor(g := 0.5 + RNG.random((4, 1, 1, 1)))
    (conv.weight * torch.tensor(dy.transpose(3, 2, 0, 1))).sum().backward()
    with jax.enable_x64(True):
        y, back = jax.vjp(F.weight_norm, jnp.asarray(kernel), jnp.asarray(g.ravel()))
        dkernel, dg = back(jnp.asarray(dy))
        np.testing.assert_allclose(y, conv.weight.detach().numpy().transpose(2, 3, 1, 0), rtol=1e-12)
        np.testing.assert_allclose(dkernel, original.original1.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-9)
        np.testing.assert_allclose(dg, original.original0.grad.numpy().ravel(), rtol=1e-9)


def test_the_state_of_torch_is_taken_by_its_u() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 2, bias=False, dtype=torch.float64))
    layer.parametrizations.weight.original.data = torch.tensor(W.T)
    for _ in range(200):
        layer(torch.ones(1, 3, dtype=torch.float64))
    with jax.enable_x64(True):
        u = jnp.asarray(layer.parametrizations.weight[0]._u.numpy())
        new, _ = F.spectral_norm(jnp.asarray(W), u)
        np.testing.assert_allclose(new, layer.eval().weight.detach().numpy().T, rtol=1e-9)


def test_timm_gives_the_same_kernels() -> None:
    std_conv = pytest.importorskip("timm.layers.std_conv", reason="timm is not installed")
    import torch

    x = torch.tensor(RNG.normal(size=(1, 2, 7, 7)), dtype=torch.float32)
    kernel = np.float32(RNG.normal(size=(3, 3, 2, 4)))

    def output(layer: Any) -> Any:
        layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
        layer.bias.data.zero_()
        return layer(x).detach().numpy().transpose(0, 2, 3, 1)

    def ours(kernel: Any) -> Any:
        x_last = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))
        return jax.lax.conv_general_dilated(x_last, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = output(std_conv.StdConv2d(2, 4, 3, padding=0, bias=True, eps=1e-5))
    np.testing.assert_allclose(ours(F.standardize(jnp.asarray(kernel))), found, rtol=1e-4, atol=1e-4)
    found = output(std_conv.ScaledStdConv2d(2, 4, 3, padding=0, gamma=1.7, gain_init=0.6))
    expected = F.scaled_standardize(jnp.asarray(kernel), jnp.full(4, 0.6), activation_gain=1.7)
    np.testing.assert_allclose(ours(expected), found, rtol=1e-4, atol=1e-4)
