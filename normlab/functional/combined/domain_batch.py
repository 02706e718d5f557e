"""Domain batch norm: batch norm with statistics, scale and bias of its own for each domain."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from normlab._core.checks import AxisName, check_features, check_flags, check_real, check_where
from normlab._core.closed_form import recomputed
from normlab._core.dtypes import float32_or_wider, output_dtype
from normlab._core.hidden import without_hidden
from normlab._core.joined import Parts, joined, of_examples
from normlab._core.layer import Parameters, State
from normlab._core.reduction import Axes, Reduction, all_but, check_more_than_one, expand_where, moments
from normlab._core.roots import reciprocal_root
from normlab._core.standardize import standardize
from normlab.functional.batch_norm import REMEDY, BatchMoments, BatchNormLayer, feature_axes


def domain_batch_norm(
    x: Array,
    domain: ArrayLike,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_domains: int,
    axis: Axes | None = None,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    use_fast_variance: bool = False,
) -> tuple[Array, BatchMoments]:
    """Standardize each feature over the examples of the same domain (Chang et al., 2019).

    `y = (x - mean[domain]) / sqrt(var[domain] + epsilon) * scale[domain] + bias[domain]`

    Statistics: over `axis` (and `axis_name`), per domain and feature, in float32 or wider. Which examples are of which
    domain may be traced, so that a domain with a single element is no error: its output is the bias.

    Args:
        x: Activations, `[batch, ..., features]`.
        domain: Number of each example's domain, `[batch]`, or of all, a whole number; at least 0.
        scale: Gain, `[num_domains, features]`, or `[features]` for all domains; `None` is 1.
        bias: Shift, of the same kind; `None` is 0.
        num_domains: Number of domains.
        axis: Axes reduced, the first among them; `None` means all but the last.
        epsilon: Added to the variance, inside the root.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        use_fast_variance: Whether to use E[x^2] - E[x]^2 within an example.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers), and the moments of the domains, with a first
        axis of domains. A domain that is traced and unknown gives NaN.

    Raises:
        StatisticsError: If there is but one element.
        ValueError: If a domain is unknown, or a shape, an axis or `epsilon` does not fit.
        TypeError: If domains are no whole numbers.

    Example:
        >>> x = jnp.array([[1.0], [3.0], [10.0], [30.0]])
        >>> y, moments = domain_batch_norm(x, jnp.array([0, 0, 1, 1]), num_domains=2, epsilon=0.0)
        >>> y.ravel(), moments.mean.ravel()
        (Array([-1.,  1., -1.,  1.], dtype=float32), Array([ 2., 20.], dtype=float32))

    References:
        Chang, You, Seo, Kwak, Han. Domain-Specific Batch Normalization. CVPR 2019. https://arxiv.org/abs/1906.03950
        Xie, Tan, Gong, Wang, Yuille, Le. Adversarial Examples Improve Image Recognition. CVPR 2020.
        https://arxiv.org/abs/1911.09665
    """
    x = jnp.asarray(x)
    check_real(x)
    check_where(where, x.shape)
    layer = DomainBatchNormLayer(
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        use_fast_variance=use_fast_variance,
        num_domains=num_domains,
    )
    parameters: Parameters = {
        "scale": scale,
        "bias": bias,
        "domain": layer.domain_of(x, jnp.asarray(domain), train=True),
    }
    y, batch = layer.by_batch(x, parameters, feature_axes(x.ndim, axis), where)
    return y.astype(output_dtype(x)), batch


@dataclass(frozen=True)
class DomainBatchNormLayer(BatchNormLayer):
    """Domain batch norm with its options: those of batch norm, without ghost batches.

    The domain of each example is among the parameters, as `domain`.

    Attributes:
        num_domains: Number of domains; `None` is `splits`, or a single domain without it.
        share_affine: Whether all domains have the same scale and bias.
        splits: Number of domains where a call may leave them out: consecutive parts of the batch, all of a size, are
            then of one domain each in training, and all is of domain 0 at evaluation. With `None` a call has to say of
            which of several domains each example is.
    """

    num_domains: int | None = None
    share_affine: bool = False
    splits: int | None = None

    affine_sets: ClassVar[str] = "sets"

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_flags(self, "share_affine")
        for name, number in (("num_domains", self.num_domains), ("splits", self.splits)):
            if number is not None and (type(number) is not int or number < 1):
                raise ValueError(f"Expected `{name}` to be a positive whole number, got {number!r}.")
        if self.splits is not None and self.num_domains not in (None, self.splits):
            raise ValueError(
                f"Expected `splits` to be `num_domains`, the {self.num_domains} domains there are, got {self.splits}. "
                "Leave one of them out."
            )
        if self.ghost_batch_size is not None:
            raise ValueError(
                f"Expected no `ghost_batch_size` beside domains, got {self.ghost_batch_size}. Number the chunks as "
                "domains, or use `splits`."
            )

    @property
    def domains(self) -> int:
        """Number of domains."""
        return self.num_domains or self.splits or 1

    @property
    def sets(self) -> int:
        """Number of scales and biases; 0 is one for all domains."""
        return 0 if self.share_affine else self.domains

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the state of batch norm for each domain."""
        return {name: jnp.stack([a] * self.domains) for name, a in super().state(shape).items()}

    def apply(
        self,
        x: Array,
        parameters: Parameters,
        state: State,
        gradient_state: State,
        *,
        features: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Normalize by the statistics of each example's domain; see `Layer`."""
        parameters = {**parameters, "domain": self.domain_of(x, parameters.get("domain"), train)}
        return super().apply(x, parameters, state, gradient_state, features=features, train=train, mask=mask)

    def domain_of(self, x: Array, domain: Array | None, train: bool) -> Array:
        """Return the domain of each example, checked, `[batch]`.

        Raises:
            ValueError: If the shape does not fit, a domain is unknown or missing, or the batch cannot be split.
            TypeError: If domains are no whole numbers.
        """
        if domain is None:
            return self._of_parts(x.shape[0], train)
        if not jnp.issubdtype(domain.dtype, jnp.integer):
            raise TypeError(f"Expected `domain` to be whole numbers, got {domain.dtype}. Number the domains from 0.")
        if domain.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"Expected `domain` to be one number, or one for each of the {x.shape[0]} examples, got shape "
                f"{domain.shape}."
            )
        unknown = sorted(_known(domain).difference(range(self.domains)))
        if unknown:
            raise ValueError(f"Expected `domain` to lie in [0, {self.domains}), got {unknown[0]}. Raise `num_domains`.")
        return jnp.broadcast_to(domain, x.shape[:1])

    def _of_parts(self, batch: int, train: bool) -> Array:
        """Return the domains of a batch that comes without."""
        if self.splits is None and self.domains > 1:
            raise ValueError(
                f"Expected `domain`, a number for each example, beside {self.domains} domains, got none. Pass it, or "
                "say with `splits` that consecutive parts of a batch are of one domain each."
            )
        if self.splits is None or not train:
            return jnp.zeros((batch,), jnp.int32)
        if batch % self.splits:
            raise ValueError(
                f"Expected a batch that `splits` divides, got {batch} examples and splits={self.splits}. Pad the "
                "batch, or pass `domain`."
            )
        return jnp.arange(batch) // (batch // self.splits)

    def by_running(
        self, x: Array, state: State, parameters: Parameters, features: tuple[int, ...], where: Array | None
    ) -> Array:
        """Normalize by the running statistics of each example's domain."""
        x = without_hidden(float32_or_wider(x), expand_where(where, x.ndim))
        running = {name: self._expanded(name, state[name], x, features) for name in self.averages}
        rstd = reciprocal_root(running["var"] + self.epsilon, self.epsilon)
        return self._normalized(x, (running["mean"],), rstd, parameters, features)

    def by_batch(
        self,
        x: Array,
        parameters: Parameters,
        features: tuple[int, ...],
        where: Array | None,
        state: State | None = None,
    ) -> tuple[Array, BatchMoments]:
        """Normalize by the examples of each domain; the output is in float32 or wider."""
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        check_more_than_one(x.shape, over, REMEDY)
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        x = without_hidden(x, where)
        if len(over.axis) == 1 and over.devices is None:
            return recomputed(partial(self._one_by_one, over, features))(x, parameters, where)
        m = self._joined(x, parameters, features, where)
        rstd = jnp.where(m.counts > 0, reciprocal_root(m.var + self.epsilon, self.epsilon), 0)
        return self._normalized(x, (m.near, m.rest), rstd, parameters, features), self._moments(m, x, features)

    def _one_by_one(
        self, over: Reduction, features: tuple[int, ...], x: Array, parameters: Parameters, where: Array | None
    ) -> tuple[Array, BatchMoments]:
        """Normalize domain after domain, as batch norm under a mask, where an example has no more than features."""
        y, found, members = jnp.full_like(x, jnp.nan), [], self._members(parameters, x.ndim)
        affine = self._affine(x, parameters, features)
        for d in range(self.domains):
            counted = members[:, d] if where is None else members[:, d] & where
            m = moments(x, over, counted)
            own = {name: a[d % a.shape[0]][None] for name, a in affine.items()}
            y = jnp.where(members[:, d], standardize(over, x, m, self.epsilon, **own, where=counted), y)
            found.append(m)
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *found)
        return y, BatchMoments.of(stacked, (self.domains, *(x.shape[a] for a in features)))

    def moments(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> BatchMoments:
        """Return the moments of each domain, which may be of one element or none."""
        x, where = float32_or_wider(x), expand_where(where, x.ndim)
        return self._moments(self._joined(x, parameters, features, where), x, features)

    def update(self, state: State, batch: BatchMoments) -> State:
        """Move the running statistics of domains that are there."""
        return jax.vmap(super().update)(state, batch)

    def merge(self, state: State, batch: BatchMoments) -> State:
        """Move the running means and TOTAL variances of domains that are there."""
        return jax.vmap(super().merge)(state, batch)

    def _joined(self, x: Array, parameters: Parameters, features: tuple[int, ...], where: Array | None) -> Parts:
        """Join the moments of the examples of each domain, with an axis of domains in place of the batch."""
        over = all_but(features, x.ndim, axis_name=self.axis_name, axis_index_groups=self.axis_index_groups)
        examples = of_examples(x, features, where, use_fast_variance=self.use_fast_variance)
        counts = jnp.where(self._members(parameters, x.ndim), examples.counts[:, None], 0)
        spread = Parts(*(jnp.broadcast_to(a[:, None], counts.shape) for a in examples))._replace(counts=counts)
        return Parts(*(a.squeeze(0) for a in joined(spread, (0,), over.devices)))

    def _moments(self, m: Parts, x: Array, features: tuple[int, ...]) -> BatchMoments:
        return BatchMoments.of(m.moments(), (self.domains, *(x.shape[a] for a in features)))

    def _members(self, parameters: Parameters, ndim: int) -> Array:
        """Return which examples are of which domain, `[batch, num_domains, 1, ...]`."""
        domain = parameters["domain"]
        assert domain is not None
        members = domain[:, None] == jnp.arange(self.domains, dtype=domain.dtype)[None]
        return jnp.expand_dims(members, range(2, ndim + 1))

    def _expanded(self, name: str, array: Array, x: Array, features: tuple[int, ...]) -> Array:
        """Give an array of `[num_domains, features]`, or of features, the rank of `x` and its dtype."""
        shape = tuple(x.shape[a] for a in features)
        if array.shape != shape:
            check_features(name, array, (self.domains, *shape))
        kept = [x.shape[a] if a in features else 1 for a in range(1, x.ndim)]
        return array.reshape(1 if array.shape == shape else self.domains, *kept).astype(x.dtype)

    def _affine(self, x: Array, parameters: Parameters, features: tuple[int, ...]) -> dict[str, Array]:
        """Return scale and bias that are there, after an axis of domains or of size 1."""
        given = {name: parameters.get(name) for name in ("scale", "bias")}
        return {name: self._expanded(name, a, x, features) for name, a in given.items() if a is not None}

    def _normalized(
        self, x: Array, means: Sequence[Array], rstd: Array, parameters: Parameters, features: tuple[int, ...]
    ) -> Array:
        """Subtract means and multiply, each of the domain of an example, then scale and shift."""
        members = self._members(parameters, x.ndim)

        def of_each(a: Array) -> Array:
            picked = jnp.where(members, a[None], 0).sum(1)
            return jnp.where(members.any(1), picked, jnp.nan)

        affine = self._affine(x, parameters, features)
        for mean in means:
            x = x - of_each(mean)
        y = x * of_each(rstd * affine["scale"] if "scale" in affine else rstd)
        return y + of_each(affine["bias"]) if "bias" in affine else y


def _known(domain: Array) -> set[int]:
    """Return the domains of examples as far as they are known, which those that are traced are not."""
    return set() if isinstance(domain, Tracer) else {*np.asarray(domain).ravel().tolist()}
