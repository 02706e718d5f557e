"""Deliberate bugs: edits of the source, and the tests that are to notice each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A deliberate bug.

    Attributes:
        name: What is wrong.
        file: Inside `normlab/`.
        edits: Old and new text, in turn; each old text is in the file once.
        tests: Node ids of the tests that are to fail, without `tests/`.
    """

    name: str
    file: str
    edits: tuple[str, ...]
    tests: tuple[str, ...]


ROUNDS = "functional/test_contract.py::test_rounds_to_the_float64_reference"
OPTIONS = "functional/test_contract.py::test_options_are_those_of_the_reference"
MASKED = "functional/test_contract.py::test_masked_elements_are_never_read"
CLOSED = "core/test_gradients.py::test_gradient_in_float32_is_the_closed_form"
DEVICES = "core/test_devices.py::test_equals_one_device_on_the_whole_batch"
OFFSET = "core/test_devices.py::test_an_offset_costs_no_digits_across_devices"
DIGITS, CONSTANT = (
    "functional/test_numerics.py::test_an_offset_costs_no_digits",
    "functional/test_numerics.py::test_a_constant_gives_the_bias_exactly",
)
DIGITS_OF_GRADIENT = f"{DIGITS}_of_the_gradient"
MOMENTS, STANDARDIZE = "_core/reduction.py", "_core/standardize.py"
BATCH_NORM, BATCH_RENORM = "functional/batch_norm.py", "functional/batch_renorm.py"
GHOST, PER_EXAMPLE = "_core/ghost.py", "_core/per_example.py"
CELL_NORM = "functional/recurrent/cell_norm.py"
CELL, UNROLL = "functional/recurrent/cells.py", "functional/recurrent/unroll.py"
CELLS = "functional/test_recurrent.py::test_values_and_gradients_in_float64_are_those_of_the_reference"
STEP = "batch_step:max_steps=4,momentum=0.9"
PLATFORMS = "core/test_platforms.py::test_both_formulations_are_exact[accelerator-"
SQUARE = "    square, limits = m.var + epsilon, "
RENORM = "        features = other_axes(over.axis, x.ndim)\n"
ONLINE, STREAMING = "functional/online_norm.py", "functional/streaming_norm.py"
STREAM = "functional/test_online_norms.py::test_both_passes_are_those_of_the_reference_call_after_call"
ONE_BY_ONE = f"{STREAM}[online:guard=None,momentum=0.8,backward_momentum=0.7-shape0-all]"
SHARES = "mix=(0.2,0.5,0.3),backward_mix=(0.2,0.5,0.3)"
MEMORIES = f"{STREAM}[streaming:{SHARES},calls_per_update=3,backward_momentum=0.4-shape5-all]"
REFUSED = "cli/test_inputs.py::test_what_is_wrong_is_said_in_one_line_before_anything_is_trained_or_written"
MOVING = "functional/moving/test_moving.py"
MABN = (
    f"{MOVING}::test_both_passes_are_those_of_the_reference_call_after_call"
    "[mabn:buffer_size=3,warmup_steps=0,clip_from=0-2-shape3-all]"
)
AVERAGE = '        new = {"mean": batch.mean, "std": jnp.sqrt(var + self.epsilon)}\n'
OF_NORMS = "tools/test_precise_norms.py::test_statistics_are_those_of_the_norm_over_all_batches"
SMALL_BATCHES = "tools/test_moments.py::test_statistics_of_small_batches_are_those_by_hand"
KERNELS = "functional/test_kernels.py::test_"
ADAPTATION = "tools/adaptation"

SQUASHING = "functional/squashing/test_squashing.py"
TORCH = "tools/test_torch_state.py::test_"
CHECKPOINTS = "cli/test_checkpoints.py::TestBadInput::test_one_line_code_2_and_nothing_written"
UNIT = "functional/responses/test_unit.py"
FOLDING, ARITHMETIC = "tools/folding", "tools/folding/test_arithmetic.py::test_"

MUTANTS = (
    Mutant(
        "epsilon outside the root",
        STANDARDIZE,
        (SQUARE, "    square, limits = lax.square(jnp.sqrt(m.var) + epsilon), "),
        (f"{ROUNDS}[layer-float32-1e-3]",),
    ),
    Mutant(
        "no epsilon",
        STANDARDIZE,
        (SQUARE, "    square, limits = m.var, "),
        (f"{ROUNDS}[rms-float32-1e-3]",),
    ),
    Mutant(
        "statistics in the dtype of the input",
        PER_EXAMPLE,
        ("        wide = x if x.dtype == jnp.float32 else float32_or_wider(x)\n", "        wide = x\n"),
        (f"{ROUNDS}[layer-bfloat16-1]",),
    ),
    Mutant(
        "one pass where two are needed",
        MOMENTS,
        ("    if not over.center or use_fast_variance:\n", "    if True:\n"),
        (f"{ROUNDS}[layer-float32-1e4 + 1]",),
    ),
    Mutant(
        "biased where unbiased",
        BATCH_NORM,
        ("m.var * jnp.where(n > 1, n / jnp.maximum(n - 1, 1), 1)\n", "m.var\n"),
        ("modules/test_modules.py::test_unbiased_running_variance_is_that_of_the_sample[BatchNorm]",),
    ),
    Mutant(
        "no gradient through the mean",
        STANDARDIZE,
        ("-rstd * mean_dx, scale)", "0 * mean_dx, scale)"),
        (f"{CLOSED}[layer-all-0.0-1.0]",),
    ),
    Mutant(
        "no gradient through the variance",
        STANDARDIZE,
        ("-rstd * (rstd * (rstd * along)), scale)", "0 * along, scale)"),
        (f"{CLOSED}[rms-all-0.0-1.0]",),
    ),
    Mutant(
        "no gradient into scale",
        STANDARDIZE,
        ("        slope = slope + product(over, rstd, dscale)\n", "        pass\n"),
        ("core/test_gradients.py::test_first_and_second_derivatives_are_central_differences[layer-True]",),
    ),
    Mutant(
        "NaN under the mask in the gradient",
        STANDARDIZE,
        ("    if where is not None:  # NaN", "    if False:  # NaN"),
        ("functional/test_contract.py::test_nan_under_a_mask_reaches_no_gradient[layer]",),
    ),
    Mutant(
        "mask ignored in the count",
        MOMENTS,
        ("float(n) if where is None and isinstance(n, int)", "float(n) if isinstance(n, int)"),
        (f"{MASKED}[layer-(B,T,W,C)]",),
    ),
    Mutant(
        "mask ignored in the sums",
        MOMENTS,
        ("    if where is not None:\n        x = jnp.where(where, x, 0)\n", ""),
        (f"{MASKED}[batch-(B,1,1,1)]",),
    ),
    Mutant(
        "unweighted means across devices",
        MOMENTS,
        (
            "    n = counts[0] if counts else jnp.full_like(nears, count)\n",
            "    n = jnp.full_like(nears, jnp.asarray(counts[0] if counts else count).mean())\n",
        ),
        (f"{DEVICES}[vmap-batch-masked]",),
    ),
    Mutant(
        "no spread between devices",
        MOMENTS,
        ("(squares + n * lax.square(apart - rest))", "squares"),
        (f"{DEVICES}[vmap-batch-all]",),
    ),
    Mutant(
        "one device's count for all",
        MOMENTS,
        ("if counts else count * devices.size", "if counts else count"),
        (f"{DEVICES}[vmap-batch-all]",),
    ),
    Mutant(
        "rounding of each device's mean forgotten",
        MOMENTS,
        ("(nears - near) + rests, 0)", "nears - near, 0)"),
        (f"{OFFSET}[vmap-batch-all]",),
    ),
    Mutant(
        "rounding of the mean left in the derivative",
        STANDARDIZE,
        (
            "    centered = centered if rest is None else centered - rest\n    if where",
            "    centered = x if rest is None else x - (near + rest)\n    if where",
        ),
        (f"{DIGITS_OF_GRADIENT}[batch]",),
    ),
    Mutant(
        "means counted from 0",
        MOMENTS,
        ("    near = _member(x, over, where, count)\n", "    near = jnp.zeros_like(_member(x, over, where, count))\n"),
        (f"{DIGITS}[layer-rows-all]", f"{CONSTANT}[layer-jit]"),
    ),
    Mutant(
        "a masked element is the member that means are counted from",
        MOMENTS,
        ("    if where is None and not _shared", "    if not _shared"),
        (f"{CONSTANT}[batch-masked]",),
    ),
    Mutant(
        "rest of the mean left in the variance of columns",
        MOMENTS,
        ("- count * lax.square(rest)\n", "\n"),
        (f"{DIGITS}[batch-rows-all]",),
    ),
    Mutant(
        "rest of the mean lost between passes over columns",
        MOMENTS,
        (
            "    return (*_about(_coarser(near, bits=2), near, rest), square)\n",
            "    return _coarser(near, bits=2), rest, square\n",
        ),
        (f"{DIGITS}[batch-rows-all]",),
    ),
    Mutant(
        "a mean that is rounded differently in different places",
        MOMENTS,
        ("near + _coarser(rest, bits=1)", "near + rest"),
        (f"{OFFSET}[vmap-batch-all]",),
    ),
    Mutant(
        "squares that overflow give the bias",
        STANDARDIZE,
        (" - limits.tiny**0.75)", ")"),
        ("functional/test_numerics.py::test_squares_that_overflow_are_loud[1e+25-layer]",),
    ),
    Mutant(
        "squares that vanish give anything",
        "_core/roots.py",
        ("square >= float_limits(square.dtype).least_square", "square >= 0"),
        ("functional/test_numerics.py::test_squares_that_vanish_are_loud[layer]",),
    ),
    Mutant(
        "on accelerators the mean of a part taken for that of all",
        MOMENTS,
        ("total(lax.square(x - near)) - count * lax.square(rest), 0)", "total(lax.square(x - near)), 0)"),
        (f"{PLATFORMS}batch-apart]",),
    ),
    Mutant(
        "on accelerators one member taken for the mean of a part",
        MOMENTS,
        ("    return member + _pool(apart, over, ", "    return member + 0 * _pool(apart, over, "),
        ("core/test_platforms.py::test_an_outlier_first_costs_no_digits[accelerator]",),
    ),
    Mutant(
        "on accelerators the gradient of rows about a number near the mean",
        "_core/rows.py",
        (
            "    slope = -rstd * (rstd * (rstd * (along - rest * mean_dx)))\n",
            "    slope = -rstd * (rstd * (rstd * along))\n",
        ),
        (f"{PLATFORMS}layer-near]",),
    ),
    Mutant(
        "the cube of a small number",
        STANDARDIZE,
        ("-rstd * (rstd * (rstd * along))", "-(rstd * rstd * rstd) * along"),
        ("core/test_platforms.py::test_both_formulations_are_exact[cpu-layer-large]",),
    ),
    Mutant(
        "a device's chunks update running statistics alone",
        BATCH_NORM,
        ("sums if devices is None else devices.sum(sums)", "sums"),
        ("core/test_devices.py::test_chunks_of_a_device_with_moments_of_all[vmap-batch-all-2]",),
    ),
    Mutant(
        "any axis may be missing on one device",
        "_core/collectives.py",
        ("if name in _ONE_DEVICE.get():", "if _ONE_DEVICE.get():"),
        ("core/test_devices.py::test_one_device_is_said_and_only_for_the_axes_named",),
    ),
    Mutant(
        "r and d from the statistics after the update",
        BATCH_RENORM,
        (
            RENORM,
            RENORM + "        state = self.update(state, self.moments(x, {}, features, where))\n",
        ),
        (f"{ROUNDS}[batch_renorm-float32-1]",),
    ),
    Mutant(
        "average of variances in batch renorm",
        BATCH_RENORM,
        (
            AVERAGE + "        return moved(state, new, self.momentum, batch.count)\n",
            '        new = {"mean": batch.mean, "std": var + self.epsilon}\n'
            '        squares = {**state, "std": lax.square(state["std"])}\n'
            "        after = moved(squares, new, self.momentum, batch.count)\n"
            '        return {**after, "std": jnp.sqrt(after["std"])}\n',
        ),
        (f"{ROUNDS}[batch_renorm-float32-300]",),
    ),
    Mutant(
        "no epsilon in the running deviation",
        BATCH_RENORM,
        (AVERAGE, AVERAGE.replace(" + self.epsilon", "")),
        (f"{ROUNDS}[batch_renorm-float32-1e-3]",),
    ),
    Mutant(
        "d not clipped",
        BATCH_RENORM,
        ("/ std), -d_max, d_max)", "/ std), -jnp.inf, jnp.inf)"),
        ("functional/test_metamorphic.py::test_batch_renorm_that_may_not_correct_is_batch_norm",),
    ),
    Mutant(
        "gradient through r",
        BATCH_RENORM,
        ("r = jnp.clip(lax.stop_gradient(", "r = jnp.clip(("),
        ("core/test_gradients.py::test_batch_renorm_takes_r_and_d_for_constants[free]",),
    ),
    Mutant(
        "momentum inverted",
        BATCH_NORM,
        ("update = decay * average + (1 - decay) * statistic", "update = (1 - decay) * average + decay * statistic"),
        ("modules/test_modules.py::test_momentum_weighs_the_old_value[BatchNorm]",),
    ),
    Mutant(
        "gradient into running statistics",
        BATCH_NORM,
        (
            "count) > 1, update, average)\n        after[name] = lax.stop_gradient(update)",
            "count) > 1, update, average)\n        after[name] = update",
        ),
        ("core/test_gradients.py::test_no_gradient_flows_into_or_through_running_statistics[batch-options0]",),
    ),
    Mutant(
        "remainder of ghost batches dropped from the running statistics",
        GHOST,
        ("jax.tree.map(_appended, m, last)", "m"),
        ("functional/test_metamorphic.py::test_ghost_batches_are_separate_calls[batch-all]",),
    ),
    Mutant(
        "ghost batches strided",
        GHOST,
        (
            "return x[: chunks * size].reshape(shape)",
            "return x[: chunks * size].reshape(size, -1, *x.shape[1:]).swapaxes(0, 1)",
            "    if sharding is None:\n        return x.reshape(shape)\n",
            "    if sharding is None:\n        return x.swapaxes(0, 1).reshape(shape)\n",
        ),
        ("functional/test_metamorphic.py::test_ghost_batches_are_separate_calls[batch-all]",),
    ),
    Mutant(
        "ghost batches averaged without their counts",
        BATCH_NORM,
        ("(m.count * part).sum(0) for", "(jnp.full_like(part, jnp.asarray(m.count).mean()) * part).sum(0) for"),
        ("functional/test_metamorphic.py::test_ghost_batches_are_separate_calls[batch-all]",),
    ),
    Mutant(
        "groups of every n-th feature",
        MOMENTS,
        (
            "x.reshape(*x.shape[:-1], x.shape[-1] // over.pool, over.pool)",
            "x.reshape(*x.shape[:-1], over.pool, x.shape[-1] // over.pool)",
            "groups.sum(-1, keepdims=True)",
            "groups.sum(-2, keepdims=True)",
        ),
        (f"{ROUNDS}[group-float32-1]",),
    ),
    Mutant(
        "running statistics move while they are made",
        "linen/_norm.py",
        ("    if after is not state and not making:\n", "    if after is not state:\n"),
        ("modules/test_modules.py::test_one_example_makes_the_parameters_and_making_them_updates_nothing[BatchNorm]",),
    ),
    Mutant(
        "running statistics move when nothing counts",
        BATCH_NORM,
        ("    if isinstance(count, Array) or count < 2:\n", "    if False:\n"),
        ("functional/test_contract.py::test_a_batch_that_is_masked_out_changes_nothing[batch]",),
    ),
    Mutant(
        "a frozen norm learns",
        BATCH_NORM,
        ("        if self.frozen:\n", "        if False:\n"),
        ("core/test_gradients.py::test_a_frozen_norm_has_no_gradient_in_scale_and_bias[batch]",),
    ),
    Mutant(
        "RMS norm subtracts the mean",
        "functional/rms_norm.py",
        ("center=False)", "center=True)"),
        (f"{ROUNDS}[rms-float32-300]",),
    ),
    Mutant(
        "the gain of SeeDNorm depends on the input divided",
        "functional/squashing/seednorm.py",
        ('means([wide * given["beta"]]', 'means([y * given["beta"]]'),
        (f"{SQUASHING}::test_vectors[seednorm-float64]",),
    ),
    Mutant(
        "dynamic erf is shifted before it is widened",
        "functional/squashing/derf.py",
        (
            'z = parameters["alpha"] * x + parameters["shift"]',
            'z = parameters["alpha"] * (x + parameters["shift"])',
        ),
        (f"{SQUASHING}::test_gradients_in_float64_are_differences_of_the_reference[derf]",),
    ),
    Mutant(
        "vectors of zeros have a gradient",
        "functional/responses/l2_norm.py",
        ("jnp.where(square == 0, 0, reciprocal_root(divisor, least))", "reciprocal_root(divisor, least)"),
        (f"{UNIT}::test_a_vector_of_zeros_gives_zeros_and_no_gradient[largest]",),
    ),
    Mutant(
        "windows of an even size are one feature late",
        "functional/responses/local_response.py",
        ("(window.size // 2, (window.size - 1) // 2)", "((window.size - 1) // 2, window.size // 2)"),
        (f"{UNIT}::test_a_window_of_an_even_size_has_one_more_neighbour_before",),
    ),
    Mutant(
        "batch norm inside the update of the cell state",
        CELL,
        (
            "    return c, activations.gate(o) * activations.state(memory(c))\n",
            "    c = memory(c)\n    return c, activations.gate(o) * activations.state(c)\n",
        ),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "sequences that have finished enter the statistics",
        CELL_NORM,
        ("where=where, axis_name=norm", "where=None, axis_name=norm"),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "rows of running statistics off by one",
        CELL_NORM,
        ("jnp.minimum(first + jnp.arange", "jnp.minimum(1 + first + jnp.arange"),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "rows off by one at evaluation",
        UNROLL,
        ("jnp.minimum(start + t, self.last)", "jnp.minimum(start + t + 1, self.last)"),
        (f"functional/test_recurrent.py::test_at_evaluation_each_sequence_takes_the_row_of_its_own_step[{STEP}]",),
    ),
    Mutant(
        "steps beyond the last row dropped",
        CELL_NORM,
        ("dtype=jnp.int32), norm.max_steps - 1)", "dtype=jnp.int32), norm.max_steps)"),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "an update for each step",
        CELL_NORM,
        (
            "update_batch_norm, momentum=norm.momentum,",
            "update_batch_norm, momentum=norm.momentum ** len(moments.mean),",
        ),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "a step that one sequence has reached moves the running statistics",
        CELL_NORM,
        ("jnp.where(jnp.asarray(moments.count) > 1, moments.count, 0)", "jnp.asarray(moments.count)"),
        (f"{CELLS}[lstm-{STEP}]",),
    ),
    Mutant(
        "batch statistics at evaluation",
        UNROLL,
        ("        if self.train:\n", "        if True:\n"),
        (f"functional/test_recurrent.py::test_at_evaluation_each_sequence_takes_the_row_of_its_own_step[{STEP}]",),
    ),
    Mutant(
        "layer norm of each gate where it is of all",
        CELL,
        ('LSTM = Cell(("i", "f", "g", "o"), (4,)', 'LSTM = Cell(("i", "f", "g", "o"), (1, 1, 1, 1)'),
        (f"{CELLS}[lstm-layer]",),
    ),
    Mutant(
        "update gate inverted",
        CELL,
        ("    return (1 - z) * n + z * carry\n", "    return z * n + (1 - z) * carry\n"),
        (f"{CELLS}[gru-layer]",),
    ),
    Mutant(
        "no reset gate",
        CELL,
        (
            "activations.state(x[2] + r * checkpoint_name(h[2], SUM))",
            "activations.state(x[2] + checkpoint_name(h[2], SUM))",
        ),
        (f"{CELLS}[gru-layer]",),
    ),
    Mutant(
        "the bias added twice",
        UNROLL,
        ("        if self.by_step:\n            x = self.biased", "        if True:\n            x = self.biased"),
        (f"{CELLS}[lstm-none]",),
    ),
    Mutant(
        "the state of a finished sequence goes on",
        CELL,
        ("    return new if where is None else jnp.where(where, new, old)\n", "    return new\n"),
        (f"{CELLS}[gru-layer]",),
    ),
    Mutant(
        "what lies past the end is read",
        UNROLL,
        ("        inputs = jnp.where(where, inputs, 0)\n", "        pass\n"),
        (f"{CELLS}[lstm-layer]",),
    ),
    Mutant(
        "scales start at 1",
        "linen/_recurrent.py",
        ("nn.initializers.constant(self.norm.initial_scale)", "nn.initializers.ones"),
        (f"functional/test_recurrent.py::test_fresh_parameters[gru-{STEP}]",),
    ),
    Mutant(
        "sequences reversed with their padding",
        UNROLL,
        ("    if seq_lengths is None:\n        return jnp.flip(x, 0)\n", "    return jnp.flip(x, 0)\n"),
        (f"functional/test_recurrent.py::test_both_directions_at_once[{STEP}]",),
    ),
    Mutant(
        "gradient of a hidden state without what comes after",
        UNROLL,
        ("with_hidden(new, hidden), carry)", "new, carry)"),
        ("functional/test_recurrent.py::test_perturbations_have_the_gradient_of_each_hidden_state[gru-layer]",),
    ),
    Mutant(
        "online norm: statistics after the example instead of before",
        "_core/stream.py",
        (
            "        return by[0] * state + by[1], state\n",
            "        return by[0] * state + by[1], by[0] * state + by[1]\n",
        ),
        (ONE_BY_ONE,),
    ),
    Mutant(
        "online norm: no spread between examples",
        ONLINE,
        ("new * (m.var + old * lax.square(mean - shift))", "new * m.var"),
        (ONE_BY_ONE,),
    ),
    Mutant(
        "online norm: the mean gradient is carried before it is corrected",
        ONLINE,
        ("_where_counted(count, old, jnp.ones_like(old))", "jnp.ones_like(old)"),
        (ONE_BY_ONE,),
    ),
    Mutant(
        "online norm: errors are not paid back",
        ONLINE,
        ("    dx = dx - new * before\n", ""),
        (ONE_BY_ONE,),
    ),
    Mutant(
        "online norm: masked examples move statistics",
        ONLINE,
        (
            "    return jnp.where(count > 0, value, otherwise) if isinstance(count, Array) else value\n",
            "    return value\n",
        ),
        (f"{MASKED}[online-(B,1,1,1)]",),
    ),
    Mutant(
        "online norm: masked elements in layer scaling",
        ONLINE,
        ("epsilon=epsilon, where=where)\n    return jnp.clip", "epsilon=epsilon)\n    return jnp.clip"),
        (f"{MASKED}[online-(B,T,W,C)]",),
    ),
    Mutant(
        "streaming norm: short memory not cleared",
        STREAMING,
        ("count_left = (jnp.where(updates, 0, a) for a in", "count_left = (1 * a for a in"),
        (MEMORIES, "functional/test_online_norms.py::test_the_short_memory_is_of_all_calls_since_the_update"),
    ),
    Mutant(
        "streaming norm: no gradient through the variance",
        STREAMING,
        ("(by_mean + 2 * (y / rstd) * by_var)", "by_mean"),
        (MEMORIES, "functional/test_online_norms.py::test_streaming_norm_of_the_present_is_batch_norm[None]"),
    ),
    Mutant(
        "streaming norm: no spread between memories",
        STREAMING,
        ("share * (part.var + lax.square(part.mean - mean))", "share * part.var"),
        (MEMORIES,),
    ),
    Mutant(
        "power norm: the gradient keeps its component along the output",
        "functional/moving/power_norm.py",
        ("t = shown(cotangents[0], where) - nu * z", "t = shown(cotangents[0], where)"),
        (
            f"{MOVING}::test_both_passes_are_those_of_the_reference_call_after_call[power-3-shape0-all]",
            f"{MOVING}::test_power_norm_gives_the_published_numbers[float64]",
        ),
    ),
    Mutant(
        "moving average batch norm: the window leaves out this batch",
        "functional/moving/mabn.py",
        ("(age >= 0) & (age < size)", "(age >= 1) & (age < size)"),
        (f"{MOVING}::test_pairs_are_as_batches_of_two_but_for_their_running_mean_square", MABN),
    ),
    Mutant(
        "moving average batch norm: scale is left out of the gradient through the statistics",
        "functional/moving/mabn.py",
        ("along = along if scale is None else along * scale", "along = along"),
        (MABN,),
    ),
    Mutant(
        "running statistics that normalize leave out the spread between batches",
        BATCH_NORM,
        (
            "    within = var.astype(old_var.dtype) + decay * lax.square(apart)",
            "    within = var.astype(old_var.dtype)",
        ),
        (
            "functional/test_online_norms.py::test_running_statistics_of_single_examples_are_mean_and_variance_of_all[batch]",
        ),
    ),
    Mutant(
        "running averages in the dtype of the state",
        BATCH_NORM,
        (" if state[name].dtype == jnp.float32 else float32_or_wider(state[name])\n", "\n"),
        ("modules/test_state.py::test_running_averages_from_half_precision_do_not_round_away[layers-batch-linen]",),
    ),
    Mutant(
        "running statistics of streams in the dtype of the state",
        "_core/stream.py",
        (
            "return state.reshape(old.shape).astype(wide_dtype(old.dtype))",
            "return state.reshape(old.shape).astype(old.dtype)",
        ),
        ("modules/test_state.py::test_running_averages_from_half_precision_do_not_round_away[layers-online-linen]",),
    ),
    Mutant(
        "deviations of a loaded batch norm without epsilon",
        "functional/state.py",
        ('jnp.sqrt(_wide(stats["var"]) + epsilon)', 'jnp.sqrt(_wide(stats["var"]))'),
        ("modules/test_state.py::test_linen_statistics_of_batch_norm_resume_as_batch_renorm_and_back",),
    ),
    Mutant(
        "variances of a loaded batch renorm below zero",
        "functional/state.py",
        ('jnp.maximum(lax.square(_wide(stats["std"])) - epsilon, 0)', 'lax.square(_wide(stats["std"])) - epsilon'),
        ("modules/test_state.py::test_linen_statistics_of_batch_norm_resume_as_batch_renorm_and_back",),
    ),
    Mutant(
        "half of a state is completed in silence",
        "functional/state.py",
        ("    if not (missing or unknown):\n", "    if not unknown:\n"),
        ("modules/test_state.py::test_half_of_a_state_is_refused[batch-mean]",),
    ),
    Mutant(
        "state written into restored arrays",
        "nnx/_norm.py",
        ("    variable.set_value(value)\n", "    variable[...] = value\n"),
        (
            "modules/test_state.py::test_an_nnx_module_restored_from_numpy_leaves_the_checkpoint_as_it_is[batch_renorm-True]",
        ),
    ),
    Mutant(
        "frozen parameters in sight of optimizers",
        "nnx/_batch.py",
        ("kind = FrozenParam if frozen else nnx.Param", "kind = nnx.Param"),
        ("modules/test_state.py::test_a_frozen_nnx_norm_is_out_of_sight_of_optimizers[BatchNorm]",),
    ),
    Mutant(
        "what a norm carries is lost in a study",
        "introspect/pure.py",
        ("self.carried(after)[1](new)", "after"),
        ("functional/test_online_norms.py::test_nnx_optimizer_and_the_helper_do_the_same[online:guard=None]",),
    ),
    Mutant(
        "a live model is blind to the weights of examples",
        "river/_network.py",
        (") * weights[:, None]", ")"),
        ("river/test_live.py::TestWeights::test_they_multiply_the_loss_as_in_rivers_regression",),
    ),
    Mutant(
        "weights of examples are made to add up to their number",
        "river/_network.py",
        ("* weights[:, None]", "* (weights / weights.mean())[:, None]"),
        ("river/test_live.py::TestWeights::test_they_multiply_the_loss_as_in_rivers_regression",),
    ),
    Mutant(
        "a stranger is taken for a process of the group",
        "study/executors/meeting.py",
        ("if hello is None or not self._is_proved(guest, hello):", "if hello is None:"),
        ("study/executors/test_meeting.py::test_a_stranger_is_sent_away_and_the_members_meet[another secret]",),
    ),
    Mutant(
        "ghost batches for norms that know none",
        "study/design/factors.py",
        ("norms.get(norm).entry.ghost_batches", "norms.get(norm).needs_batch"),
        ("functional/test_online_norms.py::test_norms_that_know_no_ghost_batches_are_handed_none",),
    ),
    Mutant(
        "statistics of frozen norms are not re-estimated for the gap",
        "study/training/inference_measures.py",
        (", where=estimated)", ")"),
        ("study/training/test_inference.py::test_reestimated[batch:frozen=True]",),
    ),
    Mutant(
        "deleted norms still run",
        "study/training/inference_measures.py",
        ('model.variant(norms.get("none"))', "model.network"),
        ("study/training/test_inference.py::test_deleted_norms_leave_the_layers_as_they_are[layer]",),
    ),
    Mutant(
        "every run of a stack is examined by the state of the first",
        "study/training/compilation.py",
        ("lambda stacked: stacked[lane]", "lambda stacked: stacked[0]"),
        ("study/training/test_examine.py::test_each_run_is_examined_by_its_own_state[2]",),
    ),
    Mutant(
        "tuning runs are examined, too",
        "study/worker/runner.py",
        (
            'outcome.examined() if evaluated and status[0] != "diverged"',
            'outcome.examined() if status[0] != "diverged"',
        ),
        ("study/training/test_examine.py::test_runs_that_are_evaluated_are_examined",),
    ),
    Mutant(
        "statistics as published without m / (m - 1)",
        "tools/moments.py",
        ("unbiased = var * np.where(count > 1, count / np.where(count > 1, count - 1, 1), 1)", "unbiased = var"),
        (f"{SMALL_BATCHES}[batches2-paper-4.5-5.0]",),
    ),
    Mutant(
        "batches of any size weigh the same in merged moments",
        "tools/moments.py",
        ("share, apart = _share(other.count, count)", "share, apart = _share(other.batches, batches)"),
        (f"{SMALL_BATCHES}[batches0-population-3.25-5.1875]",),
    ),
    Mutant(
        "no epsilon in an estimated deviation of batch renorm",
        "tools/moments.py",
        ('"std": np.sqrt(var + self.epsilon)', '"std": np.sqrt(var)'),
        ("tools/test_moments.py::test_each_norm_gets_its_own_form",),
    ),
    Mutant(
        "many examples count less than few beside the running statistics",
        "tools/adaptation/blend.py",
        ("return size / (size + self.source_count)", "return self.source_count / (size + self.source_count)"),
        (f"{ADAPTATION}/test_blend.py::test_the_weight_of_a_batch_is_its_share_of_the_examples",),
    ),
    Mutant(
        "the distance of two means counts without the weight of the running one",
        "tools/adaptation/blend.py",
        ("weight * (1 - weight) * jnp.square(new - mean)", "weight * jnp.square(new - mean)"),
        (f"{ADAPTATION}/test_blend.py::test_statistics_are_those_by_hand",),
    ),
    Mutant(
        "entropy goes up",
        "tools/adaptation/predictions.py",
        ("return -jnp.where(possible", "return jnp.where(possible"),
        (f"{ADAPTATION}/test_predictions.py::test_entropy_and_its_gradient_are_those_by_hand",),
    ),
    Mutant(
        "predictions after the last step by default",
        "tools/adaptation/adapter.py",
        ("self._steps if self._after else self._steps - 1", "self._steps"),
        (f"{ADAPTATION}/test_tent.py::test_predictions_are_those_before_the_last_step_unless_they_are_to_be_after",),
    ),
    Mutant(
        "a reset model keeps the state of the optimizer",
        "tools/adaptation/adapter.py",
        ("self.curve = self._start, []", "self.curve = self._state._replace(variables=self._start.variables), []"),
        (f"{ADAPTATION}/test_adapter.py::test_a_reset_model_begins_again_bit_by_bit[tent]",),
    ),
    Mutant(
        "elements and not examples count beside the running statistics",
        "tools/adaptation/network.py",
        ("self._blend.weight(batch.examples)", "self._blend.weight(jax.tree.leaves(batch.args)[0].size)"),
        (f"{ADAPTATION}/test_adapter.py::test_the_weight_counts_examples_and_not_elements",),
    ),
    Mutant(
        "blended statistics are kept until the next call",
        "tools/adaptation/blending.py",
        ("            _put(module, name, path, before[name])", "            pass"),
        (f"{ADAPTATION}/test_blending.py::test_a_norm_that_is_called_twice_blends_with_what_it_keeps_each_time",),
    ),
    Mutant(
        "one element per statistic is no error",
        "tools/adaptation/blending.py",
        ("if self.weight == 1:", "if self.weight > 1:"),
        ("tools/test_adapt.py::test_one_element_per_statistic_is_refused_where_it_is_all_that_counts",),
    ),
    Mutant(
        "corrections of batch renorm while statistics are estimated",
        "tools/estimation/by_batch.py",
        ('    "r_max": 1.0,\n    "d_max": 0.0,\n', ""),
        ("tools/test_precise.py::test_corrections_and_running_statistics_of_batch_renorm_play_no_part",),
    ),
    Mutant(
        "the running mean square of power norm while statistics are estimated",
        "tools/estimation/by_batch.py",
        ('    "warmup_steps": _NEVER,\n', ""),
        ("tools/test_precise_norms.py::test_running_mean_squares_and_devices_play_no_part_while_statistics_are_taken",),
    ),
    Mutant(
        "covariances merged without the spread between batches",
        "tools/estimation/covariances.py",
        ("self.scatter + other.scatter + products", "self.scatter + other.scatter"),
        (f"{OF_NORMS}[whiten-linen-False]",),
    ),
    Mutant(
        "covariances of hidden elements",
        "tools/estimation/parts.py",
        ("_shown((x - near) - rest, mask, weights)", "_shown((x - near) - rest, None, weights)"),
        (f"{OF_NORMS}[whiten-linen-True]",),
    ),
    Mutant(
        "the deviation of a domain is that of all",
        "tools/estimation/parts.py",
        ("[domain == d if mask is None", "[domain >= 0 if mask is None"),
        (f"{OF_NORMS}[domain_batch-linen-False]",),
    ),
    Mutant(
        "the mean square of power norm before its scaling",
        "tools/estimation/parts.py",
        ("        x = layer.scaled(x, features, mask)", "        pass"),
        (f"{OF_NORMS}[power-linen-False]",),
    ),
    Mutant(
        "epsilon is no part of estimated covariances",
        "tools/moments.py",
        ("covariance + self.epsilon * np.eye", "covariance + 0 * np.eye"),
        (f"{OF_NORMS}[whiten by covariance-linen-False]",),
    ),
    Mutant(
        "merged replicas without the spread between them",
        "tools/replicas.py",
        ('named["mean"].var(0) if "mean" in named else 0', "0"),
        ("tools/test_replicas.py::test_replicas_are_reduced_to_one[merge-1-3]",),
    ),
    Mutant(
        "augmentations in another order have the same hash",
        "study/data/dataset.py",
        ("np.asarray(place) for place, name", "np.asarray(1) for _, name"),
        ("study/data/test_augment.py::test_all_that_decides_is_in_the_hash",),
    ),
    Mutant(
        "a class too many in a batch",
        "study/data/splits.py",
        ("% classes]", "% (classes + 1)]"),
        ("study/training/test_inference.py::TestComposed::test_shares[3]",),
    ),
    Mutant(
        "images are flipped upside down",
        "study/data/augment.py",
        ("images[:, :, ::-1]", "images[:, ::-1]"),
        ("study/data/test_augment.py::test_flip_mirrors_about_half",),
    ),
    Mutant(
        "a run goes on from where one with another order of examples was",
        "study/training/streaming.py",
        ("self._source.fingerprint(seed), ", ""),
        ("study/training/test_streamed.py::TestCheckpoints::test_other_runs_do_not_find_it",),
    ),
    Mutant(
        "norms are equivalent whatever may have been missed",
        "study/analysis/estimates.py",
        ("difference.n >= runs_to_see() and ", ""),
        ("study/analysis/test_statistics.py::test_equivalent_takes_the_runs_that_show_a_bad_one_in_ten",),
    ),
    Mutant(
        "intervals follow no skewness",
        "study/analysis/estimates.py",
        ("s = np.where(np.abs(skewness) < 1e-4, 1e-4, skewness)", "s = 1e-4 + 0 * skewness"),
        ("study/analysis/test_statistics.py::test_a_long_tail_makes_an_interval_reach_further_on_its_side",),
    ),
    Mutant(
        "recommendations are not corrected for the number of norms",
        "study/analysis/estimates.py",
        ("0.1 / comparisons)", "0.1)"),
        (
            "study/analysis/test_statistics.py::test_what_is_ruled_out_is_one_sided_and_corrected_for_the_number_of_questions",
        ),
    ),
    Mutant(
        "failures contradict no verdict",
        "study/analysis/gaps.py",
        ("(counted == shown and not more)", "shown"),
        ("study/analysis/test_protocol.py::test_a_verdict_that_failures_contradict_is_not_said",),
    ),
    Mutant(
        "failed runs count nothing",
        "study/analysis/gaps.py",
        ("worst if point.status in FAILURES else point.error", "point.error"),
        ("study/analysis/test_protocol.py::test_a_planted_failure_is_counted_and_never_averaged",),
    ),
    Mutant(
        "a norm is recomfixed though failures reverse the order",
        "study/analysis/analyse.py",
        ("best=None if reversed_ else counted.norm", "best=counted.norm"),
        ("study/report/test_advice.py::test_an_order_that_failures_reverse_recommends_nothing[10]",),
    ),
    Mutant(
        "norms of a column are reported with choices from different grids",
        "study/design/plan.py",
        ("replace(of, provisional=provisional)", "replace(of, provisional=provisional and not of.choice)"),
        (
            "study/driver/test_time_budget.py::TestResults::test_a_norm_with_more_rates_is_compared_at_its_coarse_choice",
        ),
    ),
    Mutant(
        "a record does not change the plan",
        "study/driver/ongoing.py",
        ("self._stale.add(self._group[record.run.configuration])", "pass"),
        ("study/driver/test_ongoing.py::test_it_is_the_plan_of_all_records_at_any_time[False]",),
    ),
    Mutant(
        "every record plans everything anew",
        "study/driver/ongoing.py",
        ("for number in sorted(self._stale):", "for number in range(len(self.plan.groups)):"),
        ("study/driver/test_ongoing.py::test_a_record_plans_its_own_group_alone",),
    ),
    Mutant(
        "a file of a run is read once, whatever is written to it later",
        "study/worker/run_files.py",
        ("stamp is not None and known[path][0] == stamp", "path in known"),
        ("study/worker/test_run_files.py::test_new_replaced_and_edited_files_are_read_again",),
    ),
    Mutant(
        "a run of a later round is handed out while one of an earlier round waits",
        "study/executors/scheduler.py",
        ("for runs in pending() if room else ():", "for runs in reversed(pending()) if room else ():"),
        ("study/executors/test_executors.py::TestPool::test_a_later_round_waits_for_an_earlier_one",),
    ),
    Mutant(
        "norms are ruled out by a lowest norm as if it had been chosen beforehand",
        "study/report/headline.py",
        ("return len(self.cells) / 2", "return 1.0"),
        ("study/report/test_headline.py::test_a_lowest_norm_that_was_not_chosen_beforehand_takes_more_evidence",),
    ),
    Mutant(
        "the first sentence names norms that are not shown to be worse by the margin",
        "study/report/headline.py",
        ("interval[0] > self.margin", "interval[0] > 0"),
        ("study/report/test_headline.py::test_a_lowest_norm_that_was_not_chosen_beforehand_takes_more_evidence",),
    ),
    Mutant(
        "marks stand far from their ticks",
        "study/report/figures.py",
        ("width = 2 * DODGE *", "width = 4 * DODGE *"),
        ("study/report/test_report.py::test_marks_stand_near_their_ticks[chosen1-values0]",),
    ),
    Mutant(
        "a given test set is evaluated in the order of its file",
        "study/data/splits.py",
        ("    if data.test:  #", "    if False:  #"),
        ("study/training/test_inference.py::test_given_test_examples_come_in_random_order",),
    ),
    Mutant(
        "a share of one is taken",
        "expect.py",
        ("0 < number < 1)", "0 < number <= 1)"),
        (f"{REFUSED}[a share of 1]",),
    ),
    Mutant(
        "parts of the data may have fewer examples than there are classes",
        "study/data/splits.py",
        ("max(FEWEST, classes)", "FEWEST"),
        (f"{REFUSED}[fewer than one for each class]",),
    ),
    Mutant(
        "classes are counted from 1",
        "study/problems/supervised.py",
        ("there[-1] >= len(there)", "there[-1] > len(there)"),
        (f"{REFUSED}[labels from 1]",),
    ),
    Mutant(
        "results that beat chance by less than a twentieth are collapsed",
        "study/worker/outcome.py",
        ('metrics["validation"] + COLLAPSED_WITHIN * sem >= chance', 'metrics["validation"] >= 0.95 * chance'),
        ("study/problems/test_supervised.py::TestTraining::test_bits_below_chance_are_no_collapse",),
    ),
    Mutant(
        "what is below chance by luck has learned something",
        "study/worker/outcome.py",
        ('metrics["validation"] + COLLAPSED_WITHIN * sem >= chance', 'metrics["validation"] >= chance'),
        ("study/problems/test_supervised.py::TestTraining::test_simulated_losses_of_tokens",),
    ),
    Mutant(
        "the standard error of a single example is that of the mean",
        "study/training/loop.py",
        (".std() / len(errors) ** 0.5", ".std()"),
        ("study/problems/test_supervised.py::TestTraining::test_a_model_that_answers_by_one_class_collapses",),
    ),
    Mutant(
        "chance on the beginning of a stream is that of all of it",
        "study/training/prequential.py",
        ("slice(self.scored)) if self.scored", "slice(self.examples)) if self.scored"),
        ("study/training/test_prequential.py::test_chance_is_that_of_the_part_that_is_judged",),
    ),
    Mutant(
        "modules of folders within folders are in no key",
        "study/design/provenance.py",
        ('in package.rglob("*.py")', 'in [*package.glob("*.py"), *package.glob("*/*.py")]'),
        ("study/design/test_identity.py::TestModules::test_an_edit_anywhere_makes_another_key_unless_it_is_excused",),
    ),
    Mutant(
        "a library is in the keys of problems that do not use it",
        "study/design/records.py",
        ('identity.get("libraries", {}).get(problem, {})', 'next(iter(identity.get("libraries", {}).values()), {})'),
        ("study/design/test_identity.py::TestVersions::test_are_in_the_key_of_those_that_use_them",),
    ),
    Mutant(
        "what is imported during a run is not looked for",
        "study/worker/runner.py",
        ("if why := self._not_in_key():", "if why := '':"),
        ("study/design/test_identity.py::TestFiles::test_a_run_that_imports_what_no_key_has_is_refused[alone]",),
    ),
    Mutant(
        "epsilon of standardized weights is outside of the root",
        "functional/kernels/standardize.py",
        ("    if not outside:", "    if False:"),
        (f"{KERNELS}known_numbers_in_float64[standardize]",),
    ),
    Mutant(
        "the unbiased variance of weights is biased",
        "functional/kernels/standardize.py",
        ("max(count - 1, 1) if unbiased", "max(count, 1) if unbiased"),
        (f"{KERNELS}values_and_gradients_are_those_of_the_reference[standardize:unbiased=True-(3, 2)]",),
    ),
    Mutant(
        "epsilon of scaled standardization is a summand",
        "functional/kernels/scaled_standardize.py",
        (
            "jnp.maximum(var * (kernel.size // kernel.shape[-1]), epsilon)",
            "var * (kernel.size // kernel.shape[-1]) + epsilon",
        ),
        (f"{KERNELS}values_and_gradients_are_those_of_the_reference[scaled_standardize:epsilon=0.9-(3, 2)]",),
    ),
    Mutant(
        "scaled standardization takes the output features as fan-in",
        "functional/kernels/scaled_standardize.py",
        ("var * (kernel.size // kernel.shape[-1])", "var * kernel.shape[-1]"),
        (f"{KERNELS}values_and_gradients_are_those_of_the_reference[scaled_standardize:activation_gain=1.5-(3, 2)]",),
    ),
    Mutant(
        "weights are centred over output features",
        "functional/kernels/centralize.py",
        ("shifted.mean(inputs_of(kernel), keepdims=True)", "shifted.mean(-1, keepdims=True)"),
        (f"{KERNELS}values_and_gradients_are_those_of_the_reference[centralize-(3, 2)]",),
    ),
    Mutant(
        "the mean of equal weights is rounded",
        "functional/kernels/centralize.py",
        ("shifted = kernel - first", "shifted = kernel + 0 * first"),
        (f"{KERNELS}equal_weights_leave_no_rounding",),
    ),
    Mutant(
        "weights of zero have a gradient that is no number with weight norm",
        "functional/kernels/weight_norm.py",
        ("lax.rsqrt(jnp.where(there, square, 1))", "lax.rsqrt(square)"),
        (f"{KERNELS}weights_of_zero_have_no_gradient_with_weight_norm",),
    ),
    Mutant(
        "weight norm starts at 1",
        "functional/kernels/weight_norm.py",
        ('if self.scale_init == "norm"', 'if self.scale_init == "length"'),
        ("modules/test_reparametrized.py::test_weight_norm_changes_nothing_at_the_start",),
    ),
    Mutant(
        "the singular value is a constant of the backward pass",
        "functional/kernels/spectral_norm.py",
        (
            "    sigma = _product(v, _product(matrix, u))",
            "    sigma = lax.stop_gradient(_product(v, _product(matrix, u)))",
        ),
        (f"{KERNELS}values_and_gradients_are_those_of_the_reference[spectral_norm-(3, 2)]",),
    ),
    Mutant(
        "a kernel of zeros loses the singular vector",
        "functional/kernels/spectral_norm.py",
        (
            "jnp.where(length > 0, vector / jnp.maximum(length, epsilon), otherwise)",
            "vector / jnp.maximum(length, epsilon)",
        ),
        (f"{KERNELS}a_kernel_of_zeros_keeps_its_vector_with_spectral_norm",),
    ),
    Mutant(
        "evaluation stores the singular vector",
        "functional/kernels/spectral_norm.py",
        ('{"u": u} if train else state', '{"u": u}'),
        (f"{KERNELS}state_is_replaced_in_training_alone",),
    ),
    Mutant(
        "the state of a kernel's norm is updated while it is made",
        "linen/_reparametrized.py",
        ("bool(chosen) and not self.is_initializing()", "bool(chosen)"),
        ("modules/test_reparametrized.py::test_both_follow_the_singular_vector_in_training_alone",),
    ),
    Mutant(
        "the normalized kernel is stored",
        "nnx/_reparametrized.py",
        ("    twin = nnx.clone(layer, variables=False)\n", "    twin = layer\n"),
        ("modules/test_reparametrized.py::test_nnx_is_the_composed_function_and_writes_no_parameter[weight_norm]",),
    ),
    Mutant(
        "folding keeps the parameters of the norm",
        "linen/_kernels.py",
        ("        _take_out(params, site.owner, parameters)\n", ""),
        ("test_kernels.py::test_linen_folds_into_the_plain_model",),
    ),
    Mutant(
        "what is fitted to a batch keeps its mean",
        "functional/kernels/weight_norm.py",
        ("mean if bias is not None else", "0 * mean if bias is not None else"),
        ("test_kernels.py::test_weight_norm_starts_from_a_batch",),
    ),
    Mutant(
        "the learned part of epsilon with its sign",
        "functional/responses/frn.py",
        ("        e = jnp.abs(e.astype(wide.dtype))\n", "        e = e.astype(wide.dtype)\n"),
        ("functional/responses/test_responses.py::test_a_learned_epsilon_takes_one_position_and_a_gradient",),
    ),
    Mutant(
        "EvoNorm by the variance of each example alone",
        "functional/responses/evonorm.py",
        ("variance(over, x, batch, where), affine", "variance(positions, x, m, where), affine"),
        ("functional/responses/test_responses.py::test_vectors[evonorm_b0-True-2]",),
    ),
    Mutant(
        "half of epsilon in the covariance of whitening",
        "functional/whitening/covariance.py",
        ("    diagonal = epsilon * jnp.eye(", "    diagonal = 0.5 * epsilon * jnp.eye("),
        (f"{ROUNDS}[whiten:group_size=2-float32-1e-3]",),
    ),
    Mutant(
        "the root's derivative forgets that it does not commute",
        "functional/whitening/inverse_root.py",
        ("        return _product(root, x) + _product(x, root)", "        return 2 * _product(root, x)"),
        ("functional/whitening/test_whitening.py::test_the_exact_root_has_derivatives_where_eigenvalues_are_equal",),
    ),
    Mutant(
        "a norm of a language model is over positions",
        "models/transformer.py",
        ("        if self.causal:\n", "        if False:\n"),
        ("models/test_transformer.py::TestCausality::test_later_tokens_change_no_earlier_logit[group]",),
    ),
    Mutant(
        "weights of the placement `deep` start too small",
        "models/transformer.py",
        ("std * (8 * self.depth) ** -0.25", "std * (12 * self.depth) ** -0.25"),
        ("models/test_transformer.py::TestStart::test_standard_deviations[deep-0.5-0.5]",),
    ),
    Mutant(
        "examples of all domains share statistics",
        "functional/combined/domain_batch.py",
        (
            "counts = jnp.where(self._members(parameters, x.ndim), examples.counts[:, None], 0)",
            "counts = examples.counts[:, None] + 0 * self._members(parameters, x.ndim)",
        ),
        (
            "functional/combined/test_combined.py::test_gives_the_vectors_of_the_specification[domain_batch:num_domains=2,momentum=0.9]",
        ),
    ),
    Mutant(
        "variances of switchable norm without positions are biased",
        "functional/combined/switchable.py",
        ("var = batch.var if len(over.axis) > 1 else batch.unbiased_var", "var = batch.var"),
        ("functional/combined/test_combined.py::test_weights_decide_between_layer_and_batch_without_positions",),
    ),
    Mutant(
        "the gain of a condition is added in half precision",
        "_core/modulation.py",
        ("jnp.split(float32_or_wider(given).reshape(shape)", "jnp.split(given.astype('bfloat16').reshape(shape)"),
        ("modules/test_modulated.py::test_the_gain_is_added_in_float32",),
    ),
    Mutant(
        "a fold scales the inputs of a transposed kernel",
        f"{FOLDING}/layouts.py",
        ("Layout((-2,), (-1,), pads=True) if swapped else Layout(pads=True)", "Layout(pads=True)"),
        (f"{ARITHMETIC}into_the_layer_before_in_float64[transposed kernel]",),
    ),
    Mutant(
        "a fold adds the mean",
        f"{FOLDING}/affine.py",
        ("- mean * factor", "+ mean * factor"),
        (f"{ARITHMETIC}vector_of_a_dense_layer",),
    ),
    Mutant(
        "a fold adds epsilon to the deviation of batch renorm",
        f"{FOLDING}/network.py",
        ("0.0 if renorm else site.module.epsilon", "site.module.epsilon"),
        ("tools/test_fold.py::test_the_deviation_of_batch_renorm_has_epsilon_inside[model]",),
    ),
    Mutant(
        "a fold takes inputs of grouped convolutions from the wrong groups",
        f"{FOLDING}/kernels.py",
        (
            "np.repeat(values.reshape(groups, -1), outputs // groups, axis=0).T",
            "np.tile(values.reshape(groups, -1), (outputs // groups, 1)).T",
        ),
        (f"{ARITHMETIC}groups_in_numpy",),
    ),
    Mutant(
        "a fold forgets the bias of the layer before",
        f"{FOLDING}/kernels.py",
        ("bias * affine.factor + affine.shift", "bias + affine.shift"),
        (f"{ARITHMETIC}vector_of_a_dense_layer",),
    ),
    Mutant(
        "a shift goes into a layer that pads",
        f"{FOLDING}/reasons.py",
        ("if layout.pads and affine.shift.any():", "if False:"),
        ("tools/test_fold.py::test_a_layer_behind_that_pads",),
    ),
    Mutant(
        "a norm whose input is used elsewhere is folded",
        f"{FOLDING}/reasons.py",
        ("if not site.only_use:", "if False:"),
        ("tools/test_fold.py::test_a_norm_that_no_layer_takes_is_a_multiplication_and_an_addition[used elsewhere]",),
    ),
    Mutant(
        "a fold with a difference of NaN counts as close",
        f"{FOLDING}/verify.py",
        ("return self.difference <= self.limit", "return not self.difference > self.limit"),
        ("tools/folding/test_verify.py::test_nan_is_not_close",),
    ),
    Mutant(
        "a norm of the bits of a rounded value follows the layer before",
        "introspect/graph.py",
        ("if name in SAME and not _rounds(equation):", "if name in SAME:"),
        ("tools/test_sites.py::test_an_operation_between_layer_and_norm_is_their_neighbour",),
    ),
    Mutant(
        "an output that is used twice counts as used once",
        "tools/sites.py",
        (
            "only_use=all(len(list(call.before.root().consumers())) == 1",
            "only_use=all(len(list(call.before.root().consumers())) > 0",
        ),
        ("tools/test_sites.py::test_each_use_of_an_output_counts",),
    ),
    Mutant(
        "a loop is taken for a call of its body",
        "introspect/graph.py",
        ('"closed_call": "call_jaxpr",', '"closed_call": "call_jaxpr", "scan": "jaxpr",'),
        ("tools/test_sites.py::test_scans_in_scans_multiply_their_runs",),
    ),
    Mutant(
        "what was compiled before is not traced again",
        "introspect/applied.py",
        (
            "with linen_hook.hooked(hook), set_xla_metadata(normlab=token):",
            "with linen_hook.hooked(hook), set_xla_metadata():",
        ),
        ("tools/test_sites.py::test_a_body_that_is_compiled_already_is_traced_again",),
    ),
    Mutant(
        "the method of a base class is another call",
        "introspect/linen_hook.py",
        ("or any(module is one for one in running)", ""),
        ("tools/test_sites.py::test_a_subclass_with_a_call_of_its_own_is_the_users",),
    ),
    Mutant(
        "dropout at evaluation stands before a norm",
        "introspect/markers.py",
        ('if role == "dropout" and y is marked:', "if False:"),
        ("tools/test_sites.py::test_dropout_is_there_in_training_alone",),
    ),
    Mutant(
        "a ghost batch counts as the whole batch",
        "introspect/kinds.py",
        ('min(getattr(module, "ghost_batch_size", None) or batch, batch)', "batch"),
        ("tools/test_sites.py::test_the_elements_of_a_statistic_are_counted",),
    ),
    Mutant(
        "runs of an earlier call stay among the statistics",
        "tools/capture.py",
        ("self._received.clear()", "pass"),
        ("tools/test_capture.py::test_runs_of_an_earlier_call_do_not_stay",),
    ),
    Mutant(
        "a mask that is a constant is not seen",
        "introspect/calls.py",
        ("isinstance(mask, jax.Array | np.ndarray)", "isinstance(mask, jax.Array)"),
        ("tools/test_capture.py::test_a_mask_that_is_a_constant_or_has_no_name_counts",),
    ),
    Mutant(
        "runs under vmap are taken in any order",
        "tools/capture.py",
        ("if not self._stacked:", "if False:"),
        ("tools/test_capture.py::test_runs_without_an_order_are_refused",),
    ),
    Mutant(
        "continual norm gives its input before the group norm",
        "tools/capture.py",
        ("counted(call.module, x, mask), mask, y)", "x, mask, y)"),
        ("tools/test_capture.py::test_continual_norm_gives_its_input_after_the_group_norm",),
    ),
    Mutant(
        "a model with `deterministic` evaluates where it is to train",
        "introspect/modes.py",
        (
            '("deterministic", "eval", "use_running_average"), False',
            '("deterministic", "eval", "use_running_average"), True',
        ),
        ("introspect/test_modes.py::test_arguments_that_are_true_at_evaluation",),
    ),
    Mutant(
        "PyTorch's momentum is taken for the weight of the old value",
        "tools/torch_state.py",
        ("None if momentum is None else 1 - momentum", "None if momentum is None else momentum"),
        (f"{TORCH}the_running_variance_is_unbiased_and_momentum_the_weight_of_the_old_value",),
    ),
    Mutant(
        "kernels of square convolutions keep inputs before outputs",
        "tools/torch_state.py",
        ("return permuted((*space, 1, 0))", "return permuted((*space, 0, 1))"),
        (f"{TORCH}a_recorded_network_computes_and_trains_as_in_torch",),
    ),
    Mutant(
        "kernels of transposed convolutions are not flipped",
        "tools/torch_state.py",
        ("return permuted((*space, 0, 1), tuple(range(rank - 2)))", "return permuted((*space, 0, 1))"),
        (f"{TORCH}a_recorded_network_computes_and_trains_as_in_torch",),
    ),
    Mutant(
        "rows after a flatten stay channels first",
        "tools/torch_state.py",
        ("return np.moveaxis(theirs, 0, -1).ravel()", "return theirs.ravel()"),
        (f"{TORCH}rows_after_a_flatten_are_those_of_channels_last",),
    ),
    Mutant(
        "a transposition before a flatten is overlooked",
        "introspect/flattening.py",
        ('one.primitive.name == "transpose" for', "False for"),
        (f"{TORCH}rows_after_a_flatten_are_those_of_channels_last",),
    ),
    Mutant(
        "the start of Haiku's averages is corrected by one update too many",
        "tools/haiku_state.py",
        ("1 - decay_rate**counter if", "1 - decay_rate ** (counter + 1) if"),
        ("tools/test_haiku_state.py::test_averages_are_corrected_for_their_start",),
    ),
    Mutant(
        "layers of one shape are in the order of the mapping and not of their numbers",
        "tools/states/matching.py",
        ("    return int(found.group(1)) if (found := _COUNT.search(name)) else 0", "    return 0"),
        ("tools/test_haiku_state.py::test_a_recorded_network_computes_and_trains_as_in_haiku[False]",),
    ),
    Mutant(
        "a converted batch renorm has the deviation without epsilon",
        "tools/conversion/values.py",
        ("jnp.sqrt(wide + before)", "jnp.sqrt(wide)"),
        ("tools/test_convert.py::test_the_deviation_of_batch_renorm_has_epsilon_inside",),
    ),
    Mutant(
        "a converted batch norm has the variance with epsilon",
        "tools/conversion/values.py",
        ("jnp.square(wide) - after", "jnp.square(wide)"),
        ("tools/test_convert.py::test_batch_renorm_and_back",),
    ),
    Mutant(
        "the mask of weight decay is negated",
        "tools/masks.py",
        (
            "return _said(model, variables, args, decays)",
            "return _said(model, variables, args, lambda *of: not decays(*of))",
        ),
        ("tools/test_masks.py::test_weight_decay_alone_shrinks_only_what_decays",),
    ),
    Mutant(
        "a frozen norm has the label of one that learns",
        "tools/masks.py",
        ("return frozen if owner.frozen else norm", "return norm"),
        ("tools/test_masks.py::test_frozen_norms_have_a_label_of_their_own_and_never_decay",),
    ),
    Mutant(
        "a shared norm of NNX is replaced in its first place alone",
        "tools/conversion/nnx.py",
        ("        return replaced.get(id(value), value)\n", "        return replaced.pop(id(value), value)\n"),
        ("tools/test_convert.py::test_nnx_shares_what_was_shared_and_keeps_mode_types_and_metadata",),
    ),
    Mutant(
        "the tangent of a window leaves out its other elements by half",
        "functional/responses/local_response.py",
        ("    slope = 2 * window.beta * window.weight", "    slope = window.beta * window.weight"),
        (
            "functional/responses/test_unit.py::test_gradients_in_float64_are_differences_of_the_reference"
            "[local_response:size=4,alpha=0.5,beta=1.5-params2]",
        ),
    ),
    Mutant(
        "SeeDNorm forgets that its gain depends on the input",
        "functional/squashing/seednorm.py",
        ("outer(fall * along + rstd * ((1 - lax.square(along)) * total), alpha)", "outer(fall * along, alpha)"),
        (
            "functional/squashing/test_squashing.py::test_gradients_in_float64_are_differences_of_the_reference[seednorm:num_heads=2]",
        ),
    ),
    Mutant(
        "several domains without `domain` are domain 0",
        "functional/combined/domain_batch.py",
        ("if self.splits is None and self.domains > 1:", "if False:"),
        ("functional/combined/test_combined.py::test_bad_input_is_one_clear_line[no domain]",),
    ),
    Mutant(
        "the page of the doctor takes text for HTML",
        "doctor/display/page.py",
        ("autoescape=True", "autoescape=False"),
        ("doctor/test_page.py::test_hostile_text_is_only_text",),
    ),
    Mutant(
        "a number beside its threshold is said to be on the other side",
        "doctor/display/wording.py",
        ("    if value > threshold:\n", "    if value <= threshold:\n"),
        ("doctor/test_text.py::test_the_first_number_stands_beside_the_threshold_that_it_crossed",),
    ),
    Mutant(
        "a model with a warning is healthy",
        "doctor/display/wording.py",
        ('return all(finding.severity == "note"', 'return all(finding.severity != "error"'),
        ("doctor/test_text.py::test_the_verdict_is_one_sentence",),
    ),
    Mutant(
        "a line of code forgets its indent when it is broken",
        "doctor/display/paste.py",
        ("start + width - len(indent)", "start + width"),
        ("doctor/test_text.py::test_broken_lines_fit_every_width",),
    ),
    Mutant(
        "code is broken although it is other code then",
        "doctor/display/paste.py",
        (
            ' if _same("\\n".join(broken), "\\n".join(whole)) else whole',
            "",
            " and depth and not quoted",
            " and not quoted",
        ),
        ("doctor/test_text.py::test_places_where_a_line_may_not_end",),
    ),
    Mutant(
        "running means are drawn in variances",
        "doctor/display/strips.py",
        ("/ np.sqrt(np.float64(norm.var))", "/ np.float64(norm.var)"),
        ("doctor/test_strips.py::test_means_are_in_standard_deviations_and_variances_logarithms_of_their_ratio",),
    ),
    Mutant(
        "many effective samples are too few",
        "doctor/display/strips.py",
        ("crossed=norm.effective < bound", "crossed=norm.effective > bound"),
        ("doctor/test_strips.py::test_effective_samples_are_on_a_logarithmic_axis",),
    ),
    Mutant(
        "the command fails for errors alone",
        "cli/doctor.py",
        ("not report.ok(fail_on)", 'not report.ok("error")'),
        ("cli/test_doctor.py::test_the_exit_code_is_that_of_the_worst_finding",),
    ),
    Mutant(
        "the structure alone is examined with a step",
        "cli/doctor.py",
        ('if name not in ("step", "state")', "if name"),
        ("cli/test_doctor.py::test_the_structure_alone_is_examined_by_shapes",),
    ),
    Mutant(
        "rows are worth what positions are worth alone",
        "doctor/pooled.py",
        (
            "size * (within + of_examples) / of_examples",
            "size * within / of_examples",
        ),
        ("doctor/test_numbers.py::test_rows_are_worth_their_number",),
    ),
    Mutant(
        "a ghost batch is worth the whole batch",
        "doctor/pooled.py",
        (
            'min(getattr(site.module, "ghost_batch_size", None) or examples, examples)',
            "examples",
        ),
        ("doctor/test_numbers.py::test_a_ghost_batch_is_worth_its_own_examples",),
    ),
    Mutant(
        "pooled variance forgets the spread of the batches",
        "doctor/pooled.py",
        (
            "((variances + np.square(means - mean)) * share)",
            "(variances * share)",
        ),
        ("doctor/test_numbers.py::test_pooled_moments_are_those_of_all_elements",),
    ),
    Mutant(
        "examples whose mask is empty count",
        "doctor/measure.py",
        (
            "examples = where.any((1, 2)).sum()",
            "examples = len(rows)",
        ),
        ("doctor/test_numbers.py::test_masked_elements_do_not_count",),
    ),
    Mutant(
        "calls of a shared norm are alike whatever they are given",
        "doctor/checks/measured.py",
        ("one = pooled(site, [[call] for call in calls])", "one = whole"),
        ("doctor/test_examine.py::test_a_norm_that_is_called_twice_on_inputs_that_are_alike_is_a_note[4.0-warning]",),
    ),
    Mutant(
        "lanes of a vmap arrive as one run",
        "tools/capture.py",
        ("self._call_back(key, whole, lanes + 1)", "self._call_back(key, whole, lanes)"),
        ("doctor/test_examine.py::test_each_network_of_an_ensemble_is_measured_as_if_it_were_alone",),
    ),
    Mutant(
        "two calls draw the same random numbers",
        "doctor/patient.py",
        ("self.called(0, train, draw=1)", "self.called(0, train, draw=0)"),
        ("doctor/test_examine.py::test_norms_behind_random_numbers_that_cannot_be_turned_off_are_not_compared[linen]",),
    ),
    Mutant(
        "a step may evaluate norms that never learned",
        "doctor/patient.py",
        ("if one.path in still and not fresh(one)", "if one.path in still"),
        ("doctor/test_examine.py::test_a_step_that_evaluates_norms_by_learned_statistics_loses_no_updates",),
    ),
    Mutant(
        "a model of NNX that evaluates as a whole has frozen norms",
        "doctor/calling.py",
        ("return still if False in modes.values() else frozenset()", "return still"),
        (
            "doctor/test_examine.py::test_a_norm_of_nnx_that_evaluates_beside_others_that_train_is_meant_if_it_has_learned",
        ),
    ),
    Mutant(
        "an update is counted by the wrong way",
        "doctor/stepping.py",
        (
            "np.sum((new - old) * way)",
            "np.sum((new - batch) * way)",
        ),
        ("doctor/test_numbers.py::test_updates_of_a_step_are_counted[0.9-1]",),
    ),
    Mutant(
        "the degrees of freedom of F are exchanged",
        "doctor/checks/statistics.py",
        (
            "betainc(within / 2, between / 2,",
            "betainc(between / 2, within / 2,",
        ),
        ("doctor/test_numbers.py::test_the_tail_of_f_is_that_of_scipy",),
    ),
    Mutant(
        "layer norm takes a bias out, too",
        "doctor/checks/kinds.py",
        (
            'frozenset({"batch", "batch_renorm"',
            'frozenset({"layer", "batch", "batch_renorm"',
        ),
        ("doctor/test_numbers.py::test_kinds_that_centre_each_feature",),
    ),
    Mutant(
        "a lag below its threshold is a fault",
        "doctor/checks/statistics.py",
        (
            "far = mean > max(bounds.lag, bounds.standard_errors * error)",
            "far = mean < max(bounds.lag, bounds.standard_errors * error)",
        ),
        ("doctor/test_planted.py::test_the_fixed_version_is_silent[statistics from before a layer was scaled]",),
    ),
    Mutant(
        "a transposed feature axis goes unseen",
        "introspect/graph.py",
        (
            "order = tuple(value.permutation[axis] for axis in order) if order else value.permutation",
            "order = value.permutation",
        ),
        ("doctor/test_numbers.py::test_what_a_norm_is_computed_from[steps5-dropout-order5]",),
    ),
    Mutant(
        "momentum counts the wrong way",
        "doctor/checks/static.py",
        (
            "left = momentum ** (steps * max(1, site.calls))",
            "left = 1 - momentum ** (steps * max(1, site.calls))",
        ),
        ("doctor/test_planted.py::test_the_fixed_version_is_silent[a slow momentum]",),
    ),
    Mutant(
        "noise that an optimizer adds counts as weight decay",
        "doctor/checks/training.py",
        ("so_far + jnp.abs(a - b)", "so_far + jnp.abs(a)"),
        ("doctor/test_examine.py::test_weight_decay_is_a_move_that_depends_on_the_parameters",),
    ),
    Mutant(
        "a new checkpoint may be inside the old one",
        "tools/checkpoints/files.py",
        ("if new == old or old in new.parents:", "if new == old:"),
        (f"{CHECKPOINTS}[an output inside the checkpoint]",),
    ),
    Mutant(
        "variables of another shape are taken",
        "tools/checkpoints/trees.py",
        ("        if shape != wanted.shape:\n", "        if shape is None:\n"),
        (f"{CHECKPOINTS}[the checkpoint of another model]",),
    ),
    Mutant(
        "a changed checkpoint loses the random streams of the old one",
        "tools/checkpoints/opened.py",
        ("    return new | {keys: value for", "    return new or {keys: value for"),
        ("tools/test_checkpoint.py::TestNnx::test_random_streams_stay_as_they_were",),
    ),
    Mutant(
        "a folded model that is loaded runs the norms that are gone",
        "tools/checkpoints/changes.py",
        ("in_linen.folded_model(example.model, replacements)", "in_linen.folded_model(example.model, {})"),
        ("tools/test_checkpoint.py::TestPlaces::test_of_several_one_is_chosen_and_remembered",),
    ),
    Mutant(
        "the next tool finds norms that were folded",
        "tools/folding/linen.py",
        ("with replacing(gone), ", "with replacing([]), "),
        ("tools/test_fold_convert.py::test_a_folded_norm_is_no_norm_any_more_and_the_next_tool_knows_the_call",),
    ),
)
