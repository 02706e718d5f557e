"""Flax Linen modules: parameters and state, then one call into `normlab.functional`."""

from normlab.linen._batch import BatchNorm as BatchNorm
from normlab.linen._batch import BatchRenorm as BatchRenorm
from normlab.linen._frozen import trainable as trainable
from normlab.linen._per_example import DyT as DyT
from normlab.linen._per_example import GroupNorm as GroupNorm
from normlab.linen._per_example import Identity as Identity
from normlab.linen._per_example import InstanceNorm as InstanceNorm
from normlab.linen._per_example import LayerNorm as LayerNorm
from normlab.linen._per_example import RMSNorm as RMSNorm
from normlab.linen._recurrent import RNN as RNN
from normlab.linen._recurrent import GRUCell as GRUCell
from normlab.linen._recurrent import LSTMCell as LSTMCell
from normlab.linen._recurrent import SimpleCell as SimpleCell
from normlab.linen._stream import ContinualNorm as ContinualNorm
from normlab.linen._stream import OnlineNorm as OnlineNorm
from normlab.linen._stream import StreamingNorm as StreamingNorm
