"""Language models as problems, what is measured of them, and the comparison of places of the norm."""

import os
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import norms, study
from normlab.errors import BadInput
from normlab.models.gpt import GPT
from normlab.models.transformer import OBSERVED, Placement
from normlab.study.data import options, sequences
from normlab.study.data.tfds import text as tfds_text
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.request import Request, from_python
from normlab.study.problems import text, zoo
from normlab.study.training import transformer_measures
from normlab.study.training.supervised import SupervisedTraining

QUICK = {"xla_backend_optimization_level": 0}
"""For XLA: half the time to compile."""

PREPARED = os.environ.get("NORMLAB_DATA")
FIELDS = {"placement": "peri", "residual": "layer_scale", "qk_norm": "rms"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("data") / "text"
    made.write_text("".join("abcé"[i * i % 7 % 4] for i in range(101 * sequences.WINDOW)), "utf-8")
    return str(made)


def built(path: str, norm: str = "layer", **config: Any) -> Program:
    return text.gpt().build(norms.get(norm), {"batch_size": 4, "epochs": 1, "text": path, **config})


class TestProblem:
    def test_bits_are_those_of_the_text(self, path: str) -> None:
        program = built(path)
        assert program.chance == pytest.approx(sequences.unigram_bits(sequences.characters(path)))
        state = jax.eval_shape(lambda: program.init(0))
        found = jax.eval_shape(program.evaluate, state, dict(program.data))
        assert found["test"].shape == ()
        logits = np.log(np.array([[[0.25, 0.75], [0.5, 0.5]]]))
        bits = text.BITS_PER_CHARACTER.function(jnp.asarray(logits), jnp.asarray([[0, 1]]))
        np.testing.assert_allclose(bits, [(2 + 1) / 2], rtol=1e-6)

    def test_a_configuration_chooses_the_places(self, path: str) -> None:
        plain, chosen = (jax.eval_shape(lambda p=p: p.init(0)).params for p in (built(path), built(path, **FIELDS)))
        assert "norm_embedding" in chosen and "norm_embedding" not in plain
        assert {"norm_0_out", "residual_1"} <= chosen["layer_3"].keys() - plain["layer_3"].keys()
        assert "norm_query" in chosen["layer_0"]["attention"].keys() - plain["layer_0"]["attention"].keys()
        assert len([name for name in plain if name.startswith("layer_")]) == text.DEPTH

    def test_norms_fit(self, path: str) -> None:
        options = text.gpt().norm_options("group", {"batch_size": 4, "epochs": 1, "text": path})
        assert options == {"num_groups": 4}
        with pytest.raises(ValueError, match="position"):
            jax.eval_shape(lambda: built(path, "instance").init(0))

    def test_is_a_problem_of_the_batch_size(self) -> None:
        names = [problem.name for problem in discovery.load("batch_size").problems]
        assert names == [*zoo.MEMBERS, "gpt"]


class TestText:
    def test_is_a_file_or_a_data_set(self, path: str) -> None:
        (option,) = text.gpt().options
        assert option is options.TEXT_OPTION
        assert option.kind.of("`--text`", path) == path
        assert option.kind.of("`--text`", "tfds:tiny_shakespeare") == "tfds:tiny_shakespeare"
        for wrong in ("tfds:", "no/such/file", 3):
            with pytest.raises(BadInput):
                option.kind.of("`--text`", wrong)

    def test_an_absent_data_set_is_one_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        with pytest.raises(BadInput, match=r"^Expected the data set `tiny_shakespeare` in ") as raised:
            sequences.characters("tfds:tiny_shakespeare")
        assert "\n" not in str(raised.value)

    @pytest.mark.skipif(not PREPARED, reason="NORMLAB_DATA names no folder of prepared data sets")
    def test_tiny_shakespeare_is_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TFDS_DATA_DIR", f"{PREPARED}/tfds")
        description, content = tfds_text.read_text("tiny_shakespeare")
        assert content.startswith(b"First Citizen:\nBefore we proceed any further") and len(content) == 1_115_394
        assert "tiny_shakespeare" in description
        with pytest.raises(BadInput, match=r"^Expected a feature `text` in .*, got "):
            tfds_text.read_text("mnist")


def test_what_is_observed_is_that_of_the_network(path: str) -> None:
    program = text.gpt(
        series=[
            study.Series(name=name, title=name, x_label="", y_label="", x=tuple(range(n)))
            for name, n in (("attention_logit", 1), ("output_logit", 1), ("variance", text.DEPTH + 1))
        ],
        measure=transformer_measures.observed,
    ).build(norms.get("rms"), {"batch_size": 4, "epochs": 1, "text": path})
    training = program.init.__self__  # pyright: ignore[reportFunctionMemberAccess]
    assert isinstance(training, SupervisedTraining) and program.series is not None
    state = jax.jit(lambda: program.init(0), compiler_options=QUICK)()
    found = jax.jit(program.series, compiler_options=QUICK)(state, dict(program.data))
    model = training.network.module
    assert isinstance(model, GPT)
    tokens = training.fitted(state, program.data).test[0]
    assert len(tokens) < transformer_measures.EXAMPLES
    apply = partial(model.apply, train=False, mutable=[OBSERVED])
    logits, kept = jax.jit(apply, compiler_options=QUICK)({"params": state.params}, tokens)
    np.testing.assert_allclose(found["output_logit"], [np.abs(logits).max()], rtol=1e-5)
    layers = [kept[OBSERVED][f"layer_{i}"] for i in range(text.DEPTH)]
    np.testing.assert_allclose(
        found["attention_logit"], [max(float(layer["attention"]["largest_logit"][0]) for layer in layers)], rtol=1e-5
    )
    embedded = state.params["embedding"]["embedding"][tokens]
    assert found["variance"].shape == (text.DEPTH + 1,)
    assert float(found["variance"][0]) == pytest.approx(float(embedded.var(-1).mean()), rel=1e-4)
    np.testing.assert_allclose(found["variance"][1:], [layer["variance"][1] for layer in layers], rtol=1e-5)


def test_the_comparison_has_every_place_and_shares_what_is_the_same() -> None:
    comparison = discovery.load("transformer")
    settings = Request(comparison, from_python({"tier": "standard", "norms": ("rms",)}, comparison)).settings("")
    configs = [dict(one.config) for one in Plan(comparison, settings).configurations]
    fields = ("placement", "residual", "qk_norm")
    assert sorted(tuple(config.get(name, "") for name in fields) for config in configs) == sorted(
        [*((place, "", "") for place in get_args(Placement)), ("pre", "rezero", ""), ("pre", "", "rms")]
    )
