"""Measures of transformers: the largest logits, and the variance of the residual stream."""

from collections.abc import Mapping
from typing import Any, cast

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from normlab.models.transformer import OBSERVED
from normlab.study.training.supervised import Fitted

EXAMPLES = 128
"""Test examples, at most, that are measured."""


def observed(model: Fitted) -> dict[str, Array]:
    """Measure a network of a `normlab.models.transformer.Stack` on test examples, as evaluated.

    Returns:
        `attention_logit`: largest absolute logit of attention in any layer. `output_logit`: largest absolute output.
        `variance`: variance of the residual stream over the features of a token, as a mean over tokens, before the
        first layer and after each.
    """
    module = cast(nn.Module, model.network.module)
    variables = {"params": model.params, **model.model_state[0]}
    inputs = model.test[0][:EXAMPLES]
    outputs, found = module.apply(variables, inputs, train=False, mutable=[OBSERVED])
    by_name = cast(Mapping[str, Any], found[OBSERVED])
    layers = [by_name[f"layer_{i}"] for i in range(len(by_name))]
    return {
        "attention_logit": jnp.stack([layer["attention"]["largest_logit"][0] for layer in layers]).max()[None],
        "output_logit": jnp.abs(outputs).max()[None],
        "variance": jnp.stack([layers[0]["variance"][0], *(layer["variance"][1] for layer in layers)]),
    }
