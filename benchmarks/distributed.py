"""How much do statistics across devices help?

    normlab run distributed

A batch of 16 is divided among 1, 2, 4 and 8 devices, down to 2 examples each. Everything except the statistics of batch
norm is the same on any number of devices, so the curves show the effect of sharing statistics. On CPU each worker
process has 8 virtual devices; on GPUs and TPUs, 8 devices are required.

Models are trained under `jax.jit` with a sharded batch. Statistics are then over all devices unless `ghost_batch_size`
restricts them to the examples of a device or of a group of neighbours.
"""

from dataclasses import replace
from typing import Any

from normlab import norms, study
from normlab.study.problems import zoo

BATCH = 16
GROUPS = {"batch_device": 1, "batch_2_devices": 2, "batch_4_devices": 4, "batch_renorm": 1}
"""Number of devices that share statistics; other norms take statistics over all devices or one example."""


def _batch_norm(name: str, title: str, colour: str, marker: str) -> None:
    """Register batch norm under another name; the curve sets which devices share statistics."""
    norms.register(replace(norms.get("batch").entry, name=name, title=title, colour=colour, marker=marker))


_batch_norm("batch_device", "batch norm, each device", "#d55e00", "h")
_batch_norm("batch_2_devices", "batch norm, groups of 2 devices", "#d4639f", "p")
_batch_norm("batch_4_devices", "batch norm, groups of 4 devices", "#2f98de", "H")
_batch_norm("batch_all_devices", "batch norm, all devices", "#009e73", "8")


def _statistics(norm: str, devices: Any) -> dict[str, Any]:
    share = BATCH // devices * GROUPS.get(norm, devices)
    return {"ghost_batch_size": share} if norm in GROUPS and share < BATCH else {}


_SMOKE, _QUICK = study.TIERS["smoke"], study.TIERS["quick"]

comparison = study.Comparison(
    name="distributed",
    title=f"Test error with a batch of {BATCH} shared by devices",
    question="How much do statistics across devices help?",
    problems=zoo.problems("mlp"),
    norms=("batch_device", "batch_2_devices", "batch_4_devices", "batch_all_devices", "batch_renorm", "group"),
    baseline="batch_device",
    curves=(
        study.Curve(
            name="devices",
            title=f"A batch of {BATCH}, divided among devices",
            factor=study.Factor(
                name="devices",
                label=f"devices that share a batch of {BATCH}",
                flag="--device-counts",
                values=(1, 2, 4, 8),
                reference=1,
            ),
            config=lambda devices: {"batch_size": BATCH, "devices": devices},
            norm_options=_statistics,
            shows="The benefit of statistics across all or some devices when the batch of a device is small; the "
            "optimizer sees the same batch in every case.",
            hides="The effect of more devices with a larger batch, which is common; and the time of an update on "
            "devices that do not share a processor.",
        ),
    ),
    tiers={
        **study.TIERS,
        "smoke": replace(_SMOKE, values={"devices": (1, 8)}),
        "quick": replace(
            _QUICK,
            values={"devices": (1, 8)},
            leaves_out=f"{_QUICK.leaves_out} Quick also leaves out 2 and 4 devices.",
        ),
    },
    default_learning_rate=0.1,
    fixed=(
        f"A batch has {BATCH} examples over all devices; only statistics depend on the number of devices.",
        f"Running statistics with a time constant of one epoch of examples (momentum = 1 - {BATCH} / training "
        "examples), averaged over devices, used at evaluation. Batch renorm takes statistics of each device.",
        *zoo.FIXED,
    ),
)
