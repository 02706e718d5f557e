"""The norms of this package, a row each: what the registry, tables, figures and the documentation say of them."""

# pyright: strict

from dataclasses import dataclass
from typing import Literal, TypedDict

__all__ = ["COLOURS", "Description", "IN_CELLS", "ROWS"]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A kind of norm in words, and how it acts.

    Attributes:
        name: As in strings, e.g. `batch_renorm`.
        title: For people, e.g. `batch renorm`.
        needs_batch: Whether an example's output in training depends on which others are in its batch. That of online
            norm depends on the examples before it, however they were cut into batches.
        ghost_batches: Whether it can take the statistics of parts of a batch, by the option `ghost_batch_size`.
        stateful: Whether it keeps running statistics.
        averages: What one update of them sees, where the option `momentum` is the weight of the old value: `batch` or
            `example`; empty where there is no such option.
        needs_spatial: Whether it needs axes between batch and features.
        spatial_unless: The option, and its truth, with which it needs none.
        activates: Whether it is an activation, too, so that none follows; the option `nonlinear=False` leaves the
            activation out.
        cell_only: Whether it is a norm inside recurrent cells and no layer.
        module: Name of its class in `normlab.linen` and `normlab.nnx`; empty for norms of other packages.
        fixed: Options of the class that make it this norm, by name.
        formula: The output before `scale` and `bias`, in the words of the documentation.
        over: Elements that share a statistic.
        paper: Authors and year.
        url: Of the paper.
        colour: Its colour in figures, as `#rrggbb`; a spare one where empty, see `normlab.norms.colour`.
        marker: Its marker in figures, one of `normlab.norms.MARKERS`; a spare one where empty.
    """

    name: str
    title: str
    needs_batch: bool = False
    ghost_batches: bool = False
    stateful: bool = False
    averages: Literal["batch", "example", ""] = ""
    needs_spatial: bool = False
    spatial_unless: tuple[str, bool] | None = None
    activates: bool = False
    cell_only: bool = False
    module: str = ""
    fixed: tuple[tuple[str, object], ...] = ()
    formula: str = ""
    over: str = ""
    paper: str = ""
    url: str = ""
    colour: str = ""
    marker: str = ""


class _OfBatch(TypedDict):
    """Fields that all norms over a batch, or all over an example, have in common."""

    needs_batch: bool
    stateful: bool
    averages: Literal["batch", ""]


_GREY, _VERMILION, _BLUE, _GREEN = "#717171", "#d55e00", "#0072b2", "#009e73"
_PINK, _OCHRE, _SKY, _VIOLET = "#d4639f", "#b98a14", "#2f98de", "#8052d6"
COLOURS = (_VERMILION, _BLUE, _GREEN, _PINK, _OCHRE, _SKY, _VIOLET)
"""Colours for norms: after Okabe and Ito, apart for colour-blind eyes, a contrast of 3 to white and to near-black."""

_BATCH: _OfBatch = {"needs_batch": True, "stateful": True, "averages": "batch"}
_STANDARDIZED = "(x - mean) / sqrt(var + ε)"

_CLASSIC = (
    Description(name="none", title="no norm", module="Identity", formula="x", over="nothing", colour=_GREY, marker="o"),
    Description(
        name="batch",
        title="batch norm",
        module="BatchNorm",
        ghost_batches=True,
        **_BATCH,
        formula=f"{_STANDARDIZED}; running averages at inference",
        over="batch and positions",
        paper="Ioffe & Szegedy 2015",
        url="https://arxiv.org/abs/1502.03167",
        colour=_VERMILION,
        marker="s",
    ),
    Description(
        name="batch_renorm",
        title="batch renorm",
        module="BatchRenorm",
        ghost_batches=True,
        **_BATCH,
        formula="(x - mean) / std · r + d, r and d towards the running statistics",
        over="batch and positions",
        paper="Ioffe 2017",
        url="https://arxiv.org/abs/1702.03275",
        colour=_BLUE,
        marker="D",
    ),
    Description(
        name="layer",
        title="layer norm",
        module="LayerNorm",
        formula=_STANDARDIZED,
        over="features, at each position",
        paper="Ba et al. 2016",
        url="https://arxiv.org/abs/1607.06450",
        colour=_GREEN,
        marker="^",
    ),
    Description(
        name="rms",
        title="RMS norm",
        module="RMSNorm",
        formula="x / sqrt(mean(x²) + ε)",
        over="features, at each position",
        paper="Zhang & Sennrich 2019",
        url="https://arxiv.org/abs/1910.07467",
        colour=_PINK,
        marker="v",
    ),
    Description(
        name="group",
        title="group norm",
        module="GroupNorm",
        formula=_STANDARDIZED,
        over="a group of features and positions",
        paper="Wu & He 2018",
        url="https://arxiv.org/abs/1803.08494",
        colour=_VIOLET,
        marker="P",
    ),
    Description(
        name="instance",
        title="instance norm",
        module="InstanceNorm",
        needs_spatial=True,
        formula=_STANDARDIZED,
        over="positions, for each feature",
        paper="Ulyanov et al. 2016",
        url="https://arxiv.org/abs/1607.08022",
        colour=_OCHRE,
        marker="X",
    ),
    Description(
        name="dyt",
        title="dynamic tanh",
        module="DyT",
        formula="tanh(alpha · x), alpha learned",
        over="nothing",
        paper="Zhu et al. 2025",
        url="https://arxiv.org/abs/2503.10622",
        colour=_SKY,
        marker="*",
    ),
    Description(
        name="online",
        title="online norm",
        module="OnlineNorm",
        stateful=True,
        averages="example",
        formula=f"{_STANDARDIZED} by the examples before; a backward pass of its own; then layer scaling",
        over="positions of the examples so far",
        paper="Chiley et al. 2019",
        url="https://arxiv.org/abs/1905.05894",
        colour=_SKY,
        marker="<",
    ),
    Description(
        name="streaming",
        title="streaming norm",
        module="StreamingNorm",
        **_BATCH,
        formula=f"{_STANDARDIZED}, statistics and their gradients from a long and a short memory",
        over="batch and positions, now and before",
        paper="Liao et al. 2016",
        url="https://arxiv.org/abs/1610.06160",
        colour=_BLUE,
        marker=">",
    ),
    Description(
        name="continual",
        title="continual norm",
        module="ContinualNorm",
        ghost_batches=True,
        **_BATCH,
        formula="batch norm of group norm",
        over="a group of features, then batch and positions",
        paper="Pham et al. 2022",
        url="https://arxiv.org/abs/2203.16102",
        colour=_OCHRE,
        marker="d",
    ),
)

_SQUASHING: tuple[Description, ...] = (
    Description(
        name="derf",
        title="dynamic erf",
        module="Derf",
        formula="erf(alpha · x + shift), both learned",
        over="nothing",
        paper="Chen et al. 2025",
        url="https://arxiv.org/abs/2512.10938",
        colour=_VERMILION,
        marker="*",
    ),
    Description(
        name="seednorm",
        title="SeeDNorm",
        module="SeeDNorm",
        formula="x / sqrt(mean(x²) + ε), times tanh(sum(x · beta)) · alpha + scale, all learned",
        over="features, at each position",
        paper="Cai et al. 2025",
        url="https://arxiv.org/abs/2510.22777",
        colour=_BLUE,
        marker="*",
    ),
    Description(
        name="bhyt",
        title="BHyT",
        module="BHyT",
        formula="tanh(lam · bound · x / sqrt(mean(x²) + ε)), lam learned",
        over="features, at each position",
        paper="Byun et al. 2026",
        url="https://arxiv.org/abs/2601.09719",
        colour=_GREEN,
        marker="*",
    ),
)
"""Functions of one position that stand where a norm would."""


def _evonorm(variant: str, formula: str, colour: str) -> Description:
    """Describe a variant of EvoNorm: over a batch (b) or an example (s)."""
    kinds: _OfBatch = _BATCH if variant.startswith("b") else {"needs_batch": False, "stateful": False, "averages": ""}
    of_batch = variant.startswith("b")
    return Description(
        name=f"evonorm_{variant}",
        title=f"EvoNorm {variant.upper()}",
        module="EvoNormBatch" if of_batch else "EvoNormSample",
        fixed=(("variant", variant),),
        ghost_batches=of_batch,
        needs_spatial=of_batch,
        spatial_unless=("nonlinear", False) if of_batch else None,
        activates=True,
        **kinds,
        formula=formula,
        over="batch and positions; positions" if of_batch else "a group of features and positions",
        paper="Liu et al. 2020",
        url="https://arxiv.org/abs/2004.02967",
        colour=colour,
        marker="p",
    )


_RESPONSES: tuple[Description, ...] = (
    Description(
        name="l2",
        title="L2 norm",
        module="L2Norm",
        formula="x / max(sqrt(sum(x²)), ε)",
        over="features, at each position",
        paper="Ranjan et al. 2017",
        url="https://arxiv.org/abs/1703.09507",
        colour=_PINK,
        marker="*",
    ),
    Description(
        name="local_response",
        title="local response norm",
        module="LocalResponseNorm",
        formula="x / (k + alpha · sum(x²) / size)^beta",
        over="neighbouring features, at each position",
        paper="Krizhevsky et al. 2012",
        url="https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks",
        colour=_OCHRE,
        marker="^",
    ),
    Description(
        name="frn",
        title="filter response norm",
        module="FRN",
        needs_spatial=True,
        spatial_unless=("learn_epsilon", True),
        activates=True,
        formula="max(x / sqrt(mean(x²) + ε), tau), tau learned",
        over="positions, for each feature",
        paper="Singh & Krishnan 2020",
        url="https://arxiv.org/abs/1911.09737",
        colour=_VERMILION,
        marker="P",
    ),
    _evonorm("b0", "x / max(sqrt(var + ε), v · x + sqrt(var of example + ε)), v learned", _BLUE),
    _evonorm("b1", "x / max(sqrt(var + ε), (x + 1) · sqrt(mean(x²) of example + ε))", _GREEN),
    _evonorm("b2", "x / max(sqrt(var + ε), sqrt(mean(x²) of example + ε) - x)", _PINK),
    _evonorm("s0", "x · sigmoid(v · x) / sqrt(var + ε), v learned", _OCHRE),
    _evonorm("s1", "x · sigmoid(x) / sqrt(var + ε)", _SKY),
    _evonorm("s2", "x · sigmoid(x) / sqrt(mean(x²) + ε)", _VIOLET),
    Description(
        name="grn",
        title="global response norm",
        module="GRN",
        formula="x / scale + x · g / (mean(g) + ε), g = sqrt(sum(x²))",
        over="positions, for each feature; then features",
        paper="Woo et al. 2023",
        url="https://arxiv.org/abs/2301.00808",
        colour=_BLUE,
        marker="P",
    ),
)
"""Norms that divide and do not subtract a mean; some are activations, too."""

_COMBINED = (
    Description(
        name="mean_only_batch",
        title="mean-only batch norm",
        module="MeanOnlyBatchNorm",
        ghost_batches=True,
        **_BATCH,
        formula="x - mean; running averages at inference",
        over="batch and positions",
        paper="Salimans & Kingma 2016",
        url="https://arxiv.org/abs/1602.07868",
        colour=_GREEN,
        marker="s",
    ),
    Description(
        name="batch_channel",
        title="batch-channel norm",
        module="BatchChannelNorm",
        ghost_batches=True,
        **_BATCH,
        formula="group norm of batch norm",
        over="batch and positions, then a group of features",
        paper="Qiao et al. 2019",
        url="https://arxiv.org/abs/1911.09738",
        colour=_VIOLET,
        marker="d",
    ),
    Description(
        name="representative",
        title="representative batch norm",
        module="RepresentativeBatchNorm",
        ghost_batches=True,
        **_BATCH,
        formula="batch norm, centred and gated by means over positions",
        over="batch and positions; positions",
        paper="Gao et al. 2021",
        url="https://openaccess.thecvf.com/content/CVPR2021/html/"
        "Gao_Representative_Batch_Normalization_With_Feature_Calibration_CVPR_2021_paper.html",
        colour=_PINK,
        marker="D",
    ),
    Description(
        name="switchable",
        title="switchable norm",
        module="SwitchableNorm",
        ghost_batches=True,
        **_BATCH,
        formula="(x - Σ a mean) / sqrt(Σ b var + ε), shares a and b learned",
        over="positions; features and positions; batch and positions",
        paper="Luo et al. 2019",
        url="https://arxiv.org/abs/1806.10779",
        colour=_SKY,
        marker="D",
    ),
    Description(
        name="domain_batch",
        title="domain batch norm",
        module="DomainBatchNorm",
        **_BATCH,
        formula="batch norm for each domain",
        over="batch and positions of a domain",
        paper="Chang et al. 2019",
        url="https://arxiv.org/abs/1906.03950",
        colour=_VIOLET,
        marker="s",
    ),
)
"""Norms made of several, or with statistics for several sets."""

_WHITENING = (
    Description(
        name="whiten",
        title="whitening",
        module="Whiten",
        ghost_batches=True,
        **_BATCH,
        formula="(covariance + ε I)^(-1/2) (x - mean), by Newton's iteration",
        over="batch and positions, for each two features of a group",
        paper="Huang et al. 2019",
        url="https://arxiv.org/abs/1904.03441",
        colour=_VERMILION,
        marker="X",
    ),
    Description(
        name="group_whiten",
        title="group whitening",
        module="GroupWhiten",
        formula="(covariance + ε I)^(-1/2) (x - mean), a row for each group of features",
        over="features of a group and positions, for each two groups",
        paper="Huang et al. 2021",
        url="https://arxiv.org/abs/2009.13333",
        colour=_VIOLET,
        marker="H",
    ),
)
"""Norms that take out the correlation of features, too."""

_MOVING = (
    Description(
        name="power",
        title="power norm",
        module="PowerNorm",
        **_BATCH,
        formula="RMS norm, then h / sqrt(running mean(h²) + ε); a backward pass of its own",
        over="features; then batch and positions, before",
        paper="Shen et al. 2020",
        url="https://arxiv.org/abs/2003.07845",
        colour=_GREEN,
        marker="<",
    ),
    Description(
        name="mabn",
        title="moving average batch norm",
        module="MABN",
        ghost_batches=True,
        **_BATCH,
        formula="r · x / sqrt(mean(x²) + ε), r towards the running mean square; a backward pass of its own",
        over="batch and positions, the last 16 batches",
        paper="Yan et al. 2020",
        url="https://arxiv.org/abs/2001.06838",
        colour=_VERMILION,
        marker="h",
    ),
)
"""Norms by moving statistics, with a backward pass of their own."""

_CELLS = (
    Description(name="layer_per_gate", title="layer norm, each gate", cell_only=True, colour=_SKY, marker="h"),
    Description(
        name="batch_step", title="batch norm, each time step", cell_only=True, **_BATCH, colour=_VERMILION, marker="p"
    ),
    Description(
        name="batch_shared", title="batch norm, shared over time", cell_only=True, **_BATCH, colour=_BLUE, marker="8"
    ),
    Description(
        name="batch_input", title="batch norm, input path", cell_only=True, **_BATCH, colour=_OCHRE, marker=">"
    ),
)

ROWS = (*_CLASSIC, *_SQUASHING, *_RESPONSES, *_COMBINED, *_WHITENING, *_MOVING, *_CELLS)
"""In the order of tables."""

IN_CELLS = ("none", "layer", "rms", "group")
"""Layers that act inside recurrent cells, too."""
