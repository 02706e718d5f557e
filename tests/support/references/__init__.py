"""Every norm in float64 NumPy, by its name; a norm in the registry needs a row here."""

from tests.support import reference
from tests.support.references import combined, moving, responses, squashing, whitening

NORMS = {**reference.NORMS, **squashing.NORMS, **responses.NORMS, **combined.NORMS, **whitening.NORMS, **moving.NORMS}
"""`(x, variables, where, **options) -> output, state` by name; see `tests.support.reference`."""
EVALUATED = {**moving.EVALUATED}
"""`(x, variables, **options) -> output` at evaluation, of norms whose state is no mean and variance."""
