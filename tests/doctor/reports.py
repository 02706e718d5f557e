"""Made-up reports, as an examination would return them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from normlab.doctor import Finding, Measurement, Report, Skipped

HOSTILE = "<script>alert('x')</script>/\x1b[31m\"&" + "a_very_long_name_of_a_block/" * 12 + "norm"

EVALUATION = Finding(
    code="NL203",
    severity="error",
    path="encoder/block_0/norm_0",
    title="batch statistics at evaluation",
    evidence={"change": 0.8312, "examples": 32},
    threshold=1e-4,
    why="The output for an example depends on the other examples of its batch. A single example gives another answer.",
    source="https://arxiv.org/abs/1502.03167, section 3.1",
    remedy="BatchNorm(use_running_average=not train)",
    others=tuple(f"encoder/block_{i}/norm_0" for i in range(1, 40)),
)
LAG = Finding(
    code="NL303",
    severity="warning",
    path="stem/norm",
    title="running statistics lag behind",
    evidence={"lag": 0.61, "variance ratio": 2.25, "standard errors": 19_292},
    threshold=0.25,
    why="The deployed model normalizes by statistics that its inputs do not have.",
    source="Wu & Johnson, Rethinking “Batch” in BatchNorm, 2021",
    remedy="variables = normlab.tools.precise(model, variables, batches).variables",
    certain=False,
    others=("stem/norm_1",),
)
FEW = Finding(
    code="NL302",
    severity="warning",
    path="head/norm",
    title="batch norm of few effective samples",
    evidence={"effective_samples": 3.1},
    threshold=8.0,
    why="Statistics of few samples are noise.",
    source="arXiv:1803.08494",
    remedy="normlab.linen.GroupNorm(num_groups=8, use_bias=True, use_scale=True, epsilon=1e-5, dtype=jnp.float32, "
    "name='a, name with (brackets', reduction_axes=None)",
    certain=False,
)
BIAS = Finding(
    code="NL101",
    severity="note",
    path="Dense_0",
    title="a bias right before a norm that takes the mean",
    evidence={"largest change": 3.84e-7},
    threshold=None,
    why="The norm subtracts the bias again.",
    source="flax#1435",
    remedy="nn.Dense(64, use_bias=False)",
)
SKIPPED = (
    *(Skipped(code, "no `step` given") for code in ("NL109", "NL204", "NL205", "NL207")),
    Skipped("NL206", "no `optimizer` given"),
    Skipped("NL303", "the model is as it was initialized"),
    Skipped("NL303", "the model is as it was initialized"),
)
PASSED = tuple(f"NL{code}" for code in (102, 103, 104, 105, 106, 108, 111, 112, 113, 201, 202, 301, 305, 307, 308, 311))


def measurement(
    path: str, seed: int = 0, *, shift: float = 0.05, features: int = 64, kind: str = "batch"
) -> Measurement:
    """Make the numbers of a batch norm whose running statistics are off by a shift."""
    random = np.random.default_rng(seed)
    mean, var = random.normal(size=features), np.exp(random.normal(size=features))
    running = mean + shift * np.sqrt(var) * random.normal(size=features)
    return Measurement(
        path=path,
        kind=kind,
        mean=mean,
        var=var,
        running_mean=running,
        running_var=var * np.exp(shift * random.normal(size=features)),
        effective=float(np.exp(random.uniform(1.0, 8.0))),
        gap=2 * shift * float(random.uniform(0.5, 1.5)),
        expected_gap=0.05,
        lag=float(np.median(np.abs(running - mean) / np.sqrt(var))),
    )


def layer(path: str) -> Measurement:
    """Make the numbers of a norm without running statistics."""
    return Measurement(path=path, kind="layer", mean=np.zeros(4), var=np.ones(4))


def report(findings: Sequence[Finding] = (), norms: int = 3, shift: float = 0.05) -> Report:
    """Make a report of a network with batch norms."""
    paths = [f"stage_{i // 6}/block_{i % 6}/norm_{i % 2}" for i in range(norms)]
    found = {path: measurement(path, seed, shift=shift) for seed, path in enumerate(paths)}
    return Report(
        findings=tuple(sorted(findings, key=Finding.sort_key)),
        skipped=SKIPPED,
        measurements=found,
        model="ResNet",
        passed=PASSED,
    )


HEALTHY = report()
SICK = report([EVALUATION, LAG, FEW, BIAS], shift=0.4)
MANY = report([replace(one, code=f"NL{300 + i}") for i in range(3) for one in (EVALUATION, LAG, FEW, BIAS)], 12, 0.6)
DEEP = report([EVALUATION, LAG], norms=60, shift=0.3)
UNKNOWN = Report(
    findings=(replace(EVALUATION, path=HOSTILE, evidence={"change": float("nan")}, title=HOSTILE, why=HOSTILE),),
    skipped=(Skipped("NL303", HOSTILE),),
    measurements={
        HOSTILE: Measurement(path=HOSTILE, kind="<b>", mean=np.full(3, np.nan), var=np.zeros(3), effective=np.inf),
        "layer": layer("layer"),
        "empty": Measurement(path="empty", kind="batch"),
        "dead": replace(measurement("dead", features=4), var=np.zeros(4), running_var=np.array([0, np.inf, 1, np.nan])),
    },
    model=HOSTILE,
)
REPORTS = {
    "healthy": HEALTHY,
    "sick": SICK,
    "many": MANY,
    "deep": DEEP,
    "unknown": UNKNOWN,
    "nothing": Report((), (), {}),
}
