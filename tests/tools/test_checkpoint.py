"""Checkpoints in the forms that users write, read with their model and changed without loss."""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

from normlab.errors import BadInput
from normlab.tools import convert, fold, restore
from normlab.tools.checkpoints.changes import Conversion, Fold
from normlab.tools.checkpoints.example import Example
from normlab.tools.checkpoints.files import Saved, check_new, read, write
from normlab.tools.checkpoints.opened import Opened, opened
from tests.support import checkpoints
from tests.support.checkpoints import digest, evaluated, orbax, save, shaken


@pytest.fixture(scope="module")
def net() -> ModuleType:
    module = ModuleType("net")
    exec(checkpoints.NET, module.__dict__)
    return module


@pytest.fixture(scope="module")
def variables(net: ModuleType) -> Any:
    model, x = net.build()
    return shaken(model.init(jax.random.key(0), x, train=False))


def write_folded(found: Opened, path: Path) -> None:
    example = found.example
    folded = fold(found.model, found.variables, *example.args, **example.options)
    write(path, found.after(Fold.of(folded, found.expected), folded.model, folded.variables))


def same(a: Any, b: Any) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


class TestPlaces:
    @pytest.mark.parametrize("above", [(), ("state",), ("run", "state")])
    def test_variables_are_found_at_any_depth_and_the_rest_is_copied(
        self, above: tuple[str, ...], net: ModuleType, variables: Any, tmp_path: Path
    ) -> None:
        tree: Any = {**variables, "step": np.int32(7), "opt_state": [{"count": np.int32(3)}, {"mu": np.ones(2)}]}
        for name in reversed(above):
            tree = {name: tree, "epoch": np.int32(4)}
        path = save(tmp_path / "old", tree)
        found = opened(path, Example(*model_and_args(net)))
        assert same(found.variables, variables)
        assert set(found.beside) == {"/".join([*above, name]) for name in ("step", "opt_state")} | {
            "/".join([*above[:at], "epoch"]) for at in range(len(above))
        }
        write_folded(found, tmp_path / "new")
        new = orbax(tmp_path / "new")
        for name in above:
            assert new["epoch"] == 4
            new = new[name]
        assert (new["step"], new["opt_state"][0]["count"]) == (7, 3)
        assert "batch_stats" not in new

    def test_of_several_one_is_chosen_and_remembered(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        ema = jax.tree.map(lambda leaf: leaf * 2, variables)
        path = save(tmp_path / "old", {"state": variables, "ema": ema})
        example = Example(*model_and_args(net))
        with pytest.raises(
            BadInput, match=r"Expected the variables of one model, got `ema`, `state`\. Choose one of them by `key`\."
        ):
            opened(path, example)
        found = opened(path, example, "ema")
        assert same(found.variables, ema)
        write_folded(found, tmp_path / "new")
        model, folded = restore(tmp_path / "new", *net.build())
        x = net.x
        assert jnp.allclose(evaluated(model, folded, x), evaluated(net.Net(), ema, x), atol=1e-4)
        assert same(orbax(tmp_path / "new")["state"], jax.tree.map(np.asarray, variables))

    def test_a_key_above_no_variables_is_refused(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        path = save(tmp_path / "old", {"state": variables, "step": np.int32(7)})
        with pytest.raises(BadInput, match="Expected `step` to be the variables of a model, got a value of type"):
            opened(path, Example(*model_and_args(net)), "step")
        with pytest.raises(BadInput, match=r"Expected `state/para` in the checkpoint, got none\."):
            opened(path, Example(*model_and_args(net)), "state/para")

    def test_boxes_stay_boxes(self, tmp_path: Path) -> None:
        init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        model = nn.Sequential([nn.Dense(3, kernel_init=init), nn.BatchNorm(use_running_average=True)])
        x = jnp.ones((2, 4))
        boxed = model.init(jax.random.key(0), x)
        path = save(tmp_path / "old", boxed)
        assert orbax(path)["params"]["layers_0"]["kernel"].keys() == {"value"}
        write_folded(opened(path, Example(model, (x,))), tmp_path / "new")
        new = orbax(tmp_path / "new")
        assert new["params"]["layers_0"]["kernel"].keys() == {"value"}
        assert new["params"]["layers_0"]["bias"].shape == (3,)
        folded, values = restore(tmp_path / "new", model, x)
        assert jnp.allclose(folded.apply(values, x), model.apply(boxed, x), atol=1e-5)


def model_and_args(net: ModuleType) -> tuple[nn.Module, tuple[jax.Array, ...]]:
    model, *args = net.build()
    return model, tuple(args)


class TestNnx:
    @pytest.mark.parametrize("form", ["state", "pure dict"])
    def test_random_streams_stay_as_they_were(self, form: str, net: ModuleType, tmp_path: Path) -> None:
        model = checkpoints.trained_layers(net)
        state = nnx.state(model)
        path = save(tmp_path / "old", state if form == "state" else nnx.to_pure_dict(state))
        old = digest(path)
        found = opened(path, Example(*net.layers()[:1], net.layers()[1:]))
        write_folded(found, tmp_path / "new")
        assert digest(path) == old
        before, after = (orbax(tmp_path / name) for name in ("old", "new"))
        assert same(before["dropout"], after["dropout"])
        assert after["parts"]["0"].keys() == {"kernel", "bias"}
        restored, _ = restore(tmp_path / "new", *net.layers())
        x = jax.random.normal(jax.random.key(1), (2, 4))
        model.eval(), restored.eval()
        assert jnp.allclose(restored(x), model(x), atol=1e-5)

    def test_a_state_without_random_streams_is_enough(self, net: ModuleType, tmp_path: Path) -> None:
        model = checkpoints.trained_layers(net)
        pure = nnx.to_pure_dict(nnx.state(model))
        del pure["dropout"]
        path = save(tmp_path / "old", pure)
        restored, state = restore(path, *net.layers())
        assert same(nnx.to_pure_dict(state)["parts"], pure["parts"])
        assert restored is not model

    def test_a_layer_that_the_model_does_not_have(self, net: ModuleType, tmp_path: Path) -> None:
        pure = nnx.to_pure_dict(nnx.state(checkpoints.trained_layers(net)))
        path = save(tmp_path / "old", {**pure, "head": {"kernel": jnp.ones((4, 2))}})
        with pytest.raises(
            BadInput,
            match=r"Expected `head/kernel` not to be in the checkpoint, as in the model, got one of shape \(4, 2\)\.",
        ):
            restore(path, *net.layers())

    def test_a_shift_in_the_place_of_a_norm(self, tmp_path: Path) -> None:
        model = nnx.Sequential(nnx.relu, nnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0)), nnx.relu)
        nnx.update(model, shaken(nnx.state(model)))
        path = save(tmp_path / "old", nnx.to_pure_dict(nnx.state(model)))
        x = jax.random.normal(jax.random.key(1), (2, 4))
        write_folded(opened(path, Example(model, (x,))), tmp_path / "new")
        restored, _ = restore(tmp_path / "new", model)
        assert type(restored.layers[1]).__name__ == "Shift"
        assert jnp.allclose(restored(x), model(x), atol=1e-5)


class TestFiles:
    def test_leaves_of_every_kind_are_copied_as_they_are(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        others = {
            "note": "trained",
            "epoch": 3,
            "key": jax.random.key(3),
            "wide": np.full(2, 1 / 3),
            "none": None,
            "empty": {},
        }
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "old", {"state": variables, **others}, custom_metadata={"who": "me"})
        found = opened(tmp_path / "old", Example(*model_and_args(net)))
        write_folded(found, tmp_path / "new")
        saved = read(tmp_path / "new")
        tree: Any = saved.tree
        assert (tree["note"], tree["epoch"], tree["none"], tree["empty"]) == ("trained", 3, None, {})
        assert jnp.array_equal(jax.random.key_data(tree["key"]), jax.random.key_data(others["key"]))
        assert (tree["wide"].dtype, tree["wide"].tolist()) == (np.float64, [1 / 3, 1 / 3])
        assert saved.metadata == {"who": "me"}

    def test_orbax_alone_reads_the_new_checkpoint(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        path = save(tmp_path / "old", {**variables, "step": jnp.int32(7)})
        write_folded(opened(path, Example(*model_and_args(net))), tmp_path / "new")
        _, folded = restore(tmp_path / "new", *net.build())
        with ocp.StandardCheckpointer() as checkpointer:
            target = jax.tree.map(jnp.zeros_like, {**folded, "step": jnp.int32(0)})
            found = checkpointer.restore(tmp_path / "new", target)
        assert same(found, {**folded, "step": jnp.int32(7)})

    def test_a_step_of_a_manager(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            manager.save(3, args=ocp.args.StandardSave(variables))
        example = Example(*model_and_args(net))
        assert same(opened(tmp_path / "run" / "3" / "default", example).variables, variables)
        for path in (tmp_path / "run", tmp_path / "run" / "3"):
            with pytest.raises(BadInput, match=r"Orbax wrote, got `.*`\. It contains `.*/run/3/default`\."):
                read(path)

    def test_a_folder_that_is_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"Orbax wrote, got `.*`\. Give the folder that `save` was given\."):
            read(tmp_path)

    def test_a_damaged_checkpoint(self, tmp_path: Path) -> None:
        path = save(tmp_path / "old", {"x": jnp.ones(3)})
        (path / "manifest.ocdbt").write_text("damaged")
        with pytest.raises(BadInput, match=r"Expected a checkpoint that Orbax reads, got .* in `.*/old`\. Take"):
            read(path)

    def test_a_checkpoint_with_lost_data(self, tmp_path: Path) -> None:
        path = save(tmp_path / "old", {"x": jax.random.normal(jax.random.key(0), (3000,))})
        for file in path.rglob("d/*"):
            file.write_bytes(b"")
        with pytest.raises(BadInput, match=r"Expected a checkpoint that Orbax reads, got .* in `.*/old`\. Take"):
            read(path)

    def test_a_new_folder_may_be_deep_but_not_below_a_file(self, tmp_path: Path) -> None:
        check_new(tmp_path / "a" / "b", tmp_path / "old")
        (tmp_path / "file").touch()
        with pytest.raises(BadInput, match="Expected a folder that can be written, got "):
            check_new(tmp_path / "file" / "new", tmp_path / "old")


class TestRestore:
    def test_a_conversion_is_made_again(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        model, x = net.build()
        path = save(tmp_path / "old", variables)
        found = opened(path, Example(model, (x,)))
        to = "group:num_groups=2"
        change = Conversion(to, ("norm_1",), ("epsilon",))
        converted = convert(model, variables, to, args=(x,), where="norm_1", keep=("epsilon",), fresh="init")
        write(tmp_path / "new", found.after(change, converted.model, converted.variables))
        restored, values = restore(tmp_path / "new", model, x)
        assert same(values, converted.variables)
        assert jnp.array_equal(evaluated(restored, values, x), evaluated(converted.model, values, x))

    def test_with_a_method_and_keywords(self, tmp_path: Path) -> None:
        class Pair(nn.Module):
            def setup(self) -> None:
                self.dense = nn.Dense(2)

            def encode(self, x: jax.Array, *, scale: float) -> jax.Array:
                return scale * self.dense(x)

        model, x = Pair(), jnp.ones((2, 3))
        variables = model.init(jax.random.key(0), x, method="encode", scale=2.0)
        path = save(tmp_path / "old", variables)
        restored, values = restore(path, model, x, method="encode", scale=2.0)
        assert restored is model
        assert same(values, variables)

    def test_with_variables_of_the_user(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        model, _ = net.build()
        path = save(tmp_path / "old", variables)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
        assert same(restore(path, model, variables=shapes).variables, variables)

    def test_another_version_is_named(self, net: ModuleType, variables: Any, tmp_path: Path) -> None:
        write(tmp_path / "new", Saved(variables, ({"change": "prune"},), ""))
        with pytest.raises(
            BadInput,
            match=r"Expected a checkpoint of this version of normlab, got `prune`\. Load it with the version that",
        ):
            restore(tmp_path / "new", *net.build())

    def test_no_module(self, tmp_path: Path) -> None:
        path = save(tmp_path / "old", {"x": jnp.ones(3)})
        with pytest.raises(BadInput, match="Expected a Flax module, got a function"):
            restore(path, len)
