"""Mergeable moments of the inputs of norms, and the running statistics that follow from them."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, Self, TypeVar, cast, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import ArrayLike

from normlab.errors import BadInput
from normlab.functional.whitening.inverse_root import inverse_root
from normlab.tools import leaves
from normlab.tools.estimation.covariances import Covariances, of_sets

__all__ = ["Estimator", "Form", "SiteMoments", "Moments"]

Estimator = Literal["population", "paper", "average"]
"""`population`: mean and total variance of all elements. `paper`: mean of batch means, mean of batch variances times
m / (m - 1), all batches of one size (Ioffe & Szegedy, 2015, section 3.1). `average`: plain averages of the
statistics of batches, as with `momentum=None`."""

Variables = TypeVar("Variables")


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """Moments of what one norm was given, for each feature; NumPy arrays in float64 of one shape.

    Attributes:
        count: Elements counted, or the sum of their weights.
        mean: Their mean; 0 where nothing is counted.
        m2: Sum of squared distances from the mean.
        batches: Batches that counted an element.
        mean_of_means: Plain average of the means of batches.
        mean_of_vars: Plain average of their biased variances.
        mean_of_unbiased: Plain average of their variances times n / (n - 1).
        covariances: Of a whitening norm, those of the features of each group, of a shape of their own.
    """

    count: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    batches: np.ndarray
    mean_of_means: np.ndarray
    mean_of_vars: np.ndarray
    mean_of_unbiased: np.ndarray
    covariances: Covariances | None = None

    @classmethod
    def of_batch(
        cls,
        count: ArrayLike,
        mean: ArrayLike,
        var: ArrayLike,
        covariance: ArrayLike | None = None,
        matrix: ArrayLike | None = None,
    ) -> Self:
        """Return the moments of one batch.

        Args:
            count: Elements counted, broadcastable to the mean.
            mean: Mean of each feature.
            var: Biased variance of each feature.
            covariance: Biased covariances of the features of each group, `[..., groups, size, size]`.
            matrix: Matrix of the batch that a running average would average, beside covariances.
        """
        mean, var = np.asarray(mean, np.float64), np.asarray(var, np.float64)
        count = np.broadcast_to(np.asarray(count, np.float64), mean.shape)
        counted = count > 0
        mean, var = np.where(counted, mean, 0), np.where(counted, var, 0)
        unbiased = var * np.where(count > 1, count / np.where(count > 1, count - 1, 1), 1)
        covariances = None
        if covariance is not None and matrix is not None:
            covariances = Covariances.of_batch(count, covariance, matrix)
        return cls(count, mean, var * count, counted.astype(np.float64), mean, var, unbiased, covariances)

    def __add__(self, other: Self) -> Self:
        """Merge with the moments of other batches (Chan, Golub & LeVeque, 1979)."""
        count, batches = self.count + other.count, self.batches + other.batches
        share, apart = _share(other.count, count), other.mean - self.mean
        between = self.count * share
        m2 = self.m2 + other.m2 + apart**2 * between
        weight = _share(other.batches, batches)
        averages = (
            one + (two - one) * weight
            for one, two in (
                (self.mean_of_means, other.mean_of_means),
                (self.mean_of_vars, other.mean_of_vars),
                (self.mean_of_unbiased, other.mean_of_unbiased),
            )
        )
        covariances = None
        if self.covariances is not None and other.covariances is not None:
            covariances = self.covariances.joined(other.covariances, apart, between, weight)
        return type(self)(count, self.mean + apart * share, m2, batches, *averages, covariances=covariances)

    @property
    def var(self) -> np.ndarray:
        """Biased variance of all elements."""
        return _share(self.m2, self.count)

    def statistics(
        self, estimator: Estimator = "population", *, unbiased: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance.

        Args:
            estimator: How batches are put together; see `Estimator`.
            unbiased: Whether the variance counts n / (n - 1); by `paper` it always does.
        """
        if estimator == "paper":
            return self.mean_of_means, self.mean_of_unbiased
        if estimator == "average":
            return self.mean_of_means, self.mean_of_unbiased if unbiased else self.mean_of_vars
        more = np.where(self.count > 1, self.count - 1, self.count) if unbiased else self.count
        return self.mean, _share(self.m2, more)


@dataclass(frozen=True)
class Form:
    """How a norm keeps its statistics.

    Attributes:
        variables: Paths of its statistics by name: `mean`, and `var` or `std`, or `matrix` of a whitening norm; or a
            mean square, `phi` or `run`; perhaps `step`.
        epsilon: Added to the variance inside the root of `std`, or to the diagonal of covariances.
        unbiased: Whether the variance counts n / (n - 1).
        steps: Steps of Newton's iteration to the inverse root of covariances, which `matrix` is; 0 for covariances.
        exact: Whether they are decomposed instead.
    """

    variables: Mapping[str, str]
    epsilon: float = 0.0
    unbiased: bool = False
    steps: int = 0
    exact: bool = False

    def values(self, moments: SiteMoments, estimator: Estimator) -> dict[str, np.ndarray]:
        """Return the statistics by path, but for `step`, from moments that counted every feature."""
        mean, var = moments.statistics(estimator, unbiased=self.unbiased)
        known = {"mean": mean, "var": var, "std": np.sqrt(var + self.epsilon), "phi": mean, "run": mean}
        if moments.covariances is not None:
            known["matrix"] = self._matrix(moments, moments.covariances, estimator)
        return {path: known[name] for name, path in self.variables.items() if name in known}

    def _matrix(self, moments: SiteMoments, covariances: Covariances, estimator: Estimator) -> np.ndarray:
        """Return covariances with `epsilon` on their diagonals, or the inverse roots of these."""
        if estimator == "average":
            return covariances.mean_of_matrices
        scatter = covariances.scatter
        population = _share(scatter, np.broadcast_to(of_sets(moments.count, scatter.shape), scatter.shape))
        covariance = covariances.mean_of_unbiased if estimator == "paper" else population
        raised = covariance + self.epsilon * np.eye(covariance.shape[-1])
        if not self.steps:
            return raised
        root = inverse_root(jnp.asarray(raised), steps=self.steps, exact=self.exact, epsilon=self.epsilon)
        return np.asarray(root, np.float64)


@dataclass(frozen=True, eq=False)
class Moments(Mapping[str, SiteMoments]):
    """Moments by the paths of norms; `a + b` merges those of different batches, also of different processes.

    Attributes:
        sites: Moments of each norm.
        forms: How each norm keeps its statistics.
        batches: Number of batches.
        examples: Number of their examples.
        sizes: Different sizes of batches, the first two of them.

    Example:
        >>> form = Form({"mean": "batch_stats/bn/mean", "var": "batch_stats/bn/var"})
        >>> a = Moments.of_batch({"bn": ([3.0], [2.0], [2 / 3])}, {"bn": form}, examples=3)  # of 1, 2 and 3
        >>> b = Moments.of_batch({"bn": ([1.0], [7.0], [0.0])}, {"bn": form}, examples=1)  # of 7
        >>> (a + b)["bn"].mean, (a + b)["bn"].var
        (array([3.25]), array([5.1875]))

    References:
        Chan, Golub, LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample Variances. 1979.
    """

    sites: Mapping[str, SiteMoments] = field(default_factory=dict)
    forms: Mapping[str, Form] = field(default_factory=dict)
    batches: int = 0
    examples: int = 0
    sizes: tuple[int, ...] = ()

    @classmethod
    def of_batch(
        cls,
        found: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
        forms: Mapping[str, Form],
        *,
        examples: int,
    ) -> Self:
        """Return the moments of one batch.

        Args:
            found: Count, mean and biased variance of each norm.
            forms: How each norm keeps its statistics.
            examples: Examples in the batch.
        """
        sites = {path: SiteMoments.of_batch(*parts) for path, parts in found.items()}
        return cls(sites, dict(forms), 1, examples, (examples,))

    def __getitem__(self, path: str) -> SiteMoments:
        return self.sites[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __add__(self, other: Self) -> Self:
        """Merge with the moments of other batches.

        Raises:
            BadInput: If they are moments of another model.
        """
        for path in self.sites.keys() & other.sites.keys():
            _check_alike(path, self, other)
        sites = {**self.sites, **other.sites}
        for path in self.sites.keys() & other.sites.keys():
            sites[path] = self.sites[path] + other.sites[path]
        return type(self)(
            sites,
            {**self.forms, **other.forms},
            self.batches + other.batches,
            self.examples + other.examples,
            tuple(dict.fromkeys((*self.sizes, *other.sizes)))[:2],
        )

    def apply(self, variables: Variables, estimator: Estimator = "population") -> Variables:
        """Return the variables with these statistics in place of theirs.

        Args:
            variables: Linen's variables, a state of NNX, or an NNX module, of which the result is a copy.
            estimator: How batches are put together; see `Estimator`.

        Returns:
            The same tree with statistics in float32 or wider; the statistics of a feature that was never counted stay.

        Raises:
            BadInput: If the variables are those of another model, or batches differ in size where the estimator asks
                for one size.
        """
        if isinstance(variables, nnx.Module):
            graph, state = nnx.split(variables)
            return cast(Variables, nnx.merge(graph, self.apply(state, estimator)))
        check_estimator(estimator)
        if estimator == "paper" and len(self.sizes) > 1:
            raise BadInput(
                f"Expected batches of one size with `estimator='paper'`, got {self.sizes[0]} and {self.sizes[1]}. "
                "Drop the remainder or take 'population'."
            )
        there, values = leaves.by_path(variables), {}
        for path, moments in self.sites.items():
            counted, form = moments.count > 0, self.forms[path]
            if "step" in form.variables:
                step = form.variables["step"]
                values[step] = np.full(np.shape(there.get(step, ())), self.batches)
            for where, value in form.values(moments, estimator).items():
                old = there.get(where, value)
                there_counted = counted if value.shape == counted.shape else of_sets(counted, value.shape)
                values[where] = np.where(there_counted, value, old) if np.shape(old) == value.shape else value
        return leaves.replaced(variables, values)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a file, which `load` reads."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read the file that `save` wrote.

        Raises:
            BadInput: If the file is another one.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except (KeyError, ValueError, TypeError, zipfile.BadZipFile):
            raise BadInput(
                f"Expected a file that `Moments.save` wrote, got {Path(path).name}. Collect the moments again."
            ) from None

    def to_bytes(self) -> bytes:
        """Return the content of the file that `save` writes: the same bytes for the same moments."""
        header = {
            "forms": {path: dataclasses.asdict(form) for path, form in self.forms.items()},
            "numbers": [self.batches, self.examples, *self.sizes],
        }
        arrays = dict[str, np.ndarray]()
        for path, moments in self.sites.items():
            arrays[path] = np.stack([getattr(moments, name) for name in _ALIKE])
            if moments.covariances is not None:
                arrays[f"{path}{_OF_COVARIANCES}"] = np.stack(dataclasses.astuple(moments.covariances))
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as folder:
            folder.writestr(zipfile.ZipInfo("moments.json"), json.dumps(header))
            for name, stacked in arrays.items():
                with folder.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                    np.save(entry, stacked)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Undo `to_bytes`."""
        with zipfile.ZipFile(io.BytesIO(content)) as folder:
            header = json.loads(folder.read("moments.json"))
            forms = {path: Form(**form) for path, form in header["forms"].items()}
            arrays = {name: np.load(io.BytesIO(folder.read(name))) for name in folder.namelist() if name[-4:] == ".npy"}
        sites = {path: _read(arrays[f"{path}.npy"], arrays.get(f"{path}{_OF_COVARIANCES}.npy")) for path in forms}
        batches, examples, *sizes = header["numbers"]
        return cls(sites, forms, batches, examples, tuple(sizes))


def check_estimator(estimator: str) -> None:
    """Refuse an unknown estimator.

    Raises:
        BadInput: If it is none.
    """
    if estimator not in get_args(Estimator):
        raise BadInput(f"Expected `estimator` to be one of {get_args(Estimator)}, got {estimator!r}. Choose one.")


_ALIKE = [one.name for one in dataclasses.fields(SiteMoments) if one.name != "covariances"]
_OF_COVARIANCES = ":covariances"


def _read(alike: np.ndarray, covariances: np.ndarray | None) -> SiteMoments:
    """Return the moments of a norm from the arrays of its file."""
    return SiteMoments(*alike, covariances=None if covariances is None else Covariances(*covariances))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _check_alike(path: str, one: Moments, other: Moments) -> None:
    shapes, forms = (one[path].mean.shape, other[path].mean.shape), (one.forms[path], other.forms[path])
    if shapes[0] != shapes[1]:
        raise BadInput(
            f"Expected moments of one model, got `{path}` of shape {shapes[0]} and of {shapes[1]}. "
            "Merge moments that the same model collected."
        )
    if forms[0] != forms[1]:
        raise BadInput(
            f"Expected moments of one model, got `{path}` with two ways to keep statistics, {forms[0]} and {forms[1]}. "
            "Merge moments that the same model collected."
        )
