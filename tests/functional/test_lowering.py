"""Lowering for accelerators: no norm, cell or network has an operation that TPU or CUDA lacks.

JAX lowers for a platform without a device of the platform. Nothing here is compiled or run.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx
from jax import export
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from normlab import functional as F
from normlab import linen, models, nnx, norms
from normlab.introspect.pure import network
from normlab.models import nnx as nnx_models
from normlab.norms import Norm
from normlab.study import supervised
from normlab.study.data.dataset import digits
from normlab.study.training.loop import training
from tests.support.registered import ALL, GROUPED

PLATFORMS = ("tpu", "cuda")
DTYPES = ("float32", "bfloat16")
SHAPE = (4, 3, 2, 8)
KEY = jax.random.key(0)
Tree = Any
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def lower(f: Callable[..., Any], *arguments: Any) -> export.Exported:
    """Lower a function for the accelerators; an operation that one of them lacks is an error."""
    return export.export(jax.jit(f), platforms=PLATFORMS)(*arguments)


def lower_gradient(f: Callable[..., Any], *arguments: Any) -> None:
    """Lower a function and the gradients of its first output by all arguments of floating point."""

    def loss(*arguments: Any) -> tuple[jax.Array, Any]:
        y, *rest = f(*arguments)
        return jnp.square(y.astype(jnp.float32)).sum(), (y, *rest)

    lower(jax.value_and_grad(loss, range(len(arguments)), has_aux=True, allow_int=True), *arguments)


def shaped(shape: Sequence[Any], dtype: DTypeLike = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def norm_of(name: str, **options: Any) -> Norm:
    return norms.get(name, **({"num_groups": 2} if name in GROUPED else {}), **options)


def of_the_cpu(x: jax.Array) -> jax.Array:
    return jax.lax.linalg.schur(x)[0]


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "operation": (of_the_cpu, "'schur' not found"),
    "operation that TPU lacks": (jnp.linalg.eigvals, "'eig' not found"),
    "branch": (lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=of_the_cpu), "'schur' not found"),
    "foreign call": (lambda x: jax.ffi.ffi_call("of_the_cpu", x)(x), r"(?s)custom calls.*@of_the_cpu"),
    "callback": (lambda x: jax.pure_callback(np.sin, x, x), "callback"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_operation_that_an_accelerator_lacks_is_refused(name: str) -> None:
    f, message = REFUSED[name]
    with pytest.raises((NotImplementedError, ValueError), match=message):
        lower(f, shaped((4, 4)))


def test_an_operation_that_an_accelerator_lacks_is_refused_in_a_gradient() -> None:
    f = jax.custom_vjp(lambda x: x)
    f.defvjp(lambda x: (x, None), lambda _, dy: (of_the_cpu(dy),))
    lower(f, shaped((4, 4)))
    with pytest.raises(NotImplementedError, match="'schur' not found"):
        lower_gradient(lambda x: (f(x),), shaped((4, 4)))


RENORM = F.RenormStatistics(jnp.zeros(8), jnp.ones(8), jnp.zeros((), jnp.int32))
ONLINE = (F.RunningStatistics(jnp.zeros(8), jnp.ones(8), jnp.zeros((), jnp.int32)), F.OnlineErrors(*jnp.zeros((2, 8))))
POWER = (F.PowerMemory(jnp.ones(8), jnp.zeros((), jnp.int32)), F.PowerSlopes(jnp.zeros(8)))
CALLS: dict[str, Callable[..., Any]] = {
    "batch_renorm": lambda x, *affine, where: F.batch_renorm(x, RENORM, *affine, where=where),
    "rms_norm": lambda x, scale, _, where: F.rms_norm(x, scale, where=where),
    "seednorm": lambda x, scale, beta, where: F.seednorm(x, scale, beta=beta, where=where),
    "bhyt": lambda x, scale, _, where: F.bhyt(x, scale, where=where),
    "l2_norm": lambda x, scale, _, where: F.l2_norm(x, scale, where=where),
    "local_response": lambda x, *_, where: F.local_response(x, where=where),
    "group_norm": partial(F.group_norm, num_groups=2),
    "evonorm_sample": partial(F.evonorm_sample, num_groups=2),
    "online_norm": lambda x, *affine, where: F.online_norm(x, *ONLINE, *affine, where=where),
    "evaluate_online_norm": lambda x, *affine, where: F.evaluate_online_norm(x, ONLINE[0], *affine, where=where),
    "power_norm": lambda x, *affine, where: F.power_norm(x, *POWER, *affine, where=where),
    "evaluate_power_norm": lambda x, *affine, where: F.evaluate_power_norm(x, POWER[0].phi, *affine, where=where),
    "mean_only_batch_norm": lambda x, _, bias, where: F.mean_only_batch_norm(x, bias, where=where),
    "batch_channel_norm": partial(F.batch_channel_norm, num_groups=2),
    "domain_batch_norm": lambda x, *affine, where: F.domain_batch_norm(x, 1, *affine, num_domains=2, where=where),
    "streaming_norm": lambda x, *affine, where: F.streaming_norm(x, *F.initial_streaming((8,)), *affine, where=where),
}
"""Functions that take more than activations, scale and bias, or less."""

FUNCTIONS = [
    name
    for name in F.__all__
    if re.fullmatch(r"\w+_(re)?norm|dyt|derf|seednorm|bhyt|local_response|frn|grn|evonorm_\w+", name)
    and not re.match("as_|cell_|merge_|update_|weight_|spectral_", name)
]


@each_dtype
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, dtype: str) -> None:
    def f(x: jax.Array, scale: jax.Array, bias: jax.Array, where: Any) -> tuple[Any, ...]:
        function: Callable[..., Any] = CALLS.get(name) or getattr(F, name)
        found = function(x, scale, bias, where=where)
        return found if isinstance(found, tuple) else (found,)

    lower_gradient(partial(f, where=None), shaped(SHAPE, dtype), shaped((8,)), shaped((8,)))
    lower_gradient(f, shaped(SHAPE, dtype), shaped((8,)), shaped((8,)), shaped((4, 3, 1, 1), "bool"))


def applied(module: nn.Module, variables: Tree, *arguments: Any, **options: Any) -> tuple[Any, ...]:
    """The outputs of a Linen module and its new state."""
    return module.apply(variables, *arguments, mutable=["batch_stats"], **options)


def variables_of(module: nn.Module, x: jax.ShapeDtypeStruct) -> Tree:
    return jax.eval_shape(module.init, KEY, x)


def modes(name: str) -> tuple[bool, ...]:
    """Training and evaluation, where they differ."""
    return (True, False) if norms.get(name).stateful else (True,)


@each_dtype
@pytest.mark.parametrize("name", ALL)
def test_linen_modules(name: str, dtype: str) -> None:
    x, mask = shaped(SHAPE, dtype), shaped((4, 3, 1, 1), "bool")
    for train in modes(name):
        module = norm_of(name).linen(train=train)
        variables = variables_of(module, x)
        lower_gradient(partial(applied, module), variables, x)
        lower_gradient(lambda v, x, mask, m=module: applied(m, v, x, mask=mask), variables, x, mask)


@each_dtype
@pytest.mark.parametrize("name", [name for name in ALL if norms.get(name).entry.ghost_batches])
def test_ghost_batches(name: str, dtype: str) -> None:
    x = shaped(SHAPE, dtype)
    for size in (2, 3):  # the second leaves a smaller batch at the end
        module = norm_of(name, ghost_batch_size=size).linen(train=True)
        lower_gradient(partial(applied, module), variables_of(module, x), x)


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_a_symbolic_batch(train: bool) -> None:
    module = norms.get("batch").linen(train=train)
    x = shaped(export.symbolic_shape("b, 3, 2, 8"))
    lower_gradient(partial(applied, module), variables_of(module, shaped(SHAPE)), x)


OVER_POSITIONS = {"reduction_axes": (1, 2, 3), "feature_axes": -1}
ACROSS = [name for name in ALL if hasattr(norm_of(name).linen(train=True), "axis_name")]


@each_dtype
@pytest.mark.parametrize("name", ACROSS)
def test_statistics_across_devices(name: str, dtype: str) -> None:
    """Devices share the examples of a norm over the batch, the positions of another."""
    options = OVER_POSITIONS if name in ("layer", "rms", "seednorm", "bhyt", "l2") else {}
    spec = P("d") if norms.get(name).needs_batch else P(None, "d")
    module = norm_of(name, axis_name="d", **options).linen(train=True)
    x = shaped((4, 4, 2, 8), dtype)
    variables = variables_of(module, x)
    mesh = AbstractMesh((4,), ("d",), axis_types=(AxisType.Auto,))
    spread = jax.shard_map(partial(applied, module), mesh=mesh, in_specs=(P(), spec), out_specs=(spec, P()))
    lower_gradient(spread, variables, x)


def nnx_outputs(module: flax_nnx.Module) -> tuple[Callable[..., tuple[Any, ...]], Tree]:
    """An NNX module as a function of its state, which returns the outputs and the new state; and its state."""
    graph, state = flax_nnx.split(module)

    def f(state: Tree, *arguments: Any) -> tuple[Any, ...]:
        merged = flax_nnx.merge(graph, state)
        return merged(*arguments), flax_nnx.state(merged)

    return f, jax.eval_shape(lambda: state)


@each_dtype
@pytest.mark.parametrize("name", ALL)
def test_nnx_modules(name: str, dtype: str) -> None:
    module = flax_nnx.eval_shape(lambda: norm_of(name).nnx(8, rngs=flax_nnx.Rngs(0)))
    for train in modes(name):
        module.train() if train else module.eval()
        lower_gradient(*nnx_outputs(module), shaped(SHAPE, dtype))


CELLS = ("SimpleCell", "LSTMCell", "GRUCell")
SEQUENCES, LENGTHS = (4, 3, 2), (4,)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("cell", "norm"), [*itertools.product(CELLS, norms.cell_names())])
def test_recurrent_cells(cell: str, norm: str, dtype: str) -> None:
    x, lengths = shaped(SEQUENCES, dtype), shaped(LENGTHS, "int32")
    for train in modes(norm):
        rnn = linen.RNN(getattr(linen, cell)(8, norm=norm, use_running_average=not train))
        of_lengths = lambda v, x, lengths, rnn=rnn: applied(rnn, v, x, seq_lengths=lengths)  # noqa: E731
        lower_gradient(of_lengths, variables_of(rnn, x), x, lengths)


@pytest.mark.parametrize(("cell", "norm"), [*zip(itertools.cycle(CELLS), norms.cell_names(), strict=False)])
def test_recurrent_cells_of_nnx(cell: str, norm: str) -> None:
    make = getattr(nnx, cell)
    module = flax_nnx.eval_shape(lambda: nnx.RNN(make(2, 8, norm=norm, rngs=flax_nnx.Rngs(0))))
    lower_gradient(*nnx_outputs(module), shaped(SEQUENCES))


IMAGES, DIGITS, TOKENS = (4, 16, 16, 3), (4, 8, 8, 1), (4, 8)
NETWORKS: dict[str, tuple[Callable[..., Any], str, tuple[int, ...]]] = {
    "MLP": (models.MLP, "batch", DIGITS),
    "ConvNet": (models.ConvNet, "batch", DIGITS),
    "VGG": (partial(models.VGG, depth=11), "batch", (4, 32, 32, 3)),
    "ResNet": (partial(models.ResNet, depth=8), "batch", IMAGES),
    "ResNet50": (models.ResNet50, "batch", (2, 32, 32, 3)),
    "ViTTiny": (partial(models.ViTTiny, depth=2), "layer", IMAGES),
    "GPT": (partial(models.GPT, vocabulary=8, depth=2), "rms", TOKENS),
    "LSTMNet": (models.LSTMNet, "batch_step", SEQUENCES),
    "MLP of NNX": (partial(nnx_models.MLP, inputs=64), "batch", DIGITS),
    "ResNet of NNX": (partial(nnx_models.ResNet, depth=8), "batch", IMAGES),
}


def test_every_network_is_lowered() -> None:
    assert {*models.__all__, *(f"{name} of NNX" for name in nnx_models.__all__)} == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_of_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, norm, shape = NETWORKS[name]
    dtype, labels = ("int32", shape) if shape == TOKENS else ("float32", shape[:1])
    net = network(model, norms.get(norm), np.zeros(shape, dtype))
    params, model_state = jax.eval_shape(lambda: net.init(0))
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(params: Tree, model_state: Tree, opt_state: Tree, x: jax.Array, labels: jax.Array) -> Tree:
        (loss, _), gradients, model_state = net.gradients(
            lambda out: (optax.softmax_cross_entropy_with_integer_labels(out, labels).mean(), ()),
            params, model_state, x, jnp.int32(0),
        )  # fmt: skip
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return loss, optax.apply_updates(params, updates), model_state, opt_state

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # the networks choose their convolution by it
    opt_state = jax.eval_shape(optimizer.init, params)
    lower(step, params, model_state, opt_state, shaped(shape, dtype), shaped(labels, "int32"))
    lower(net.evaluate, params, model_state, shaped(shape, dtype))


def test_a_stack_of_runs_of_the_study() -> None:
    problem = supervised(name="small", model=partial(models.MLP, hidden=(8,)), data=digits)
    program = problem.build(norms.get("batch"), {"batch_size": 8, "epochs": 1})
    states = jax.tree.map(lambda leaf: shaped((2, *np.shape(leaf)), np.asarray(leaf).dtype), program.init(0))
    lower(jax.vmap(training(program), in_axes=(0, 0, None)), shaped((2,)), states, dict(program.data))
    lower(jax.vmap(program.evaluate, in_axes=(0, None)), states, dict(program.data))
