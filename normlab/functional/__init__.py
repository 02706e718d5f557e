"""The definitions: pure functions of arrays, with no Flax, no state and no parameters of their own."""

from normlab.functional._batch import BatchMoments as BatchMoments
from normlab.functional._batch import RunningStatistics as RunningStatistics
from normlab.functional._batch import batch_elements as batch_elements
from normlab.functional._batch import batch_norm as batch_norm
from normlab.functional._batch import batch_renorm as batch_renorm
from normlab.functional._batch import first_batch as first_batch
from normlab.functional._batch import normalize as normalize
from normlab.functional._batch import update_batch_norm as update_batch_norm
from normlab.functional._batch import update_batch_renorm as update_batch_renorm
from normlab.functional._checks import StatisticsError as StatisticsError
from normlab.functional._devices import one_device as one_device
from normlab.functional._example import group_norm as group_norm
from normlab.functional._example import instance_norm as instance_norm
from normlab.functional._example import layer_norm as layer_norm
from normlab.functional._example import rms_norm as rms_norm
