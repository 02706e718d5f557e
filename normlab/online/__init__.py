"""Learning from a stream as it arrives: river's interface around any Flax model with any norm."""

try:
    import river as river
except ImportError as error:
    raise ImportError(
        "Expected `river` to be installed, which it is not. Run `pip install 'normlab[online]'`."
    ) from error

from normlab.online._live import Classifier as Classifier
from normlab.online._live import Regressor as Regressor
