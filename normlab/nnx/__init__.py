"""Flax NNX modules: parameters and state, then one call into `normlab.functional`."""

from normlab.nnx._batch import BatchNorm as BatchNorm
from normlab.nnx._batch import BatchRenorm as BatchRenorm
from normlab.nnx._norm import FrozenParam as FrozenParam
from normlab.nnx._per_example import DyT as DyT
from normlab.nnx._per_example import GroupNorm as GroupNorm
from normlab.nnx._per_example import Identity as Identity
from normlab.nnx._per_example import InstanceNorm as InstanceNorm
from normlab.nnx._per_example import LayerNorm as LayerNorm
from normlab.nnx._per_example import RMSNorm as RMSNorm
from normlab.nnx._recurrent import RNN as RNN
from normlab.nnx._recurrent import GRUCell as GRUCell
from normlab.nnx._recurrent import LSTMCell as LSTMCell
from normlab.nnx._recurrent import SimpleCell as SimpleCell
from normlab.nnx._stream import ContinualNorm as ContinualNorm
from normlab.nnx._stream import OnlineNorm as OnlineNorm
from normlab.nnx._stream import OverwriteWithGradient as OverwriteWithGradient
from normlab.nnx._stream import StreamingNorm as StreamingNorm
from normlab.nnx._stream import overwrite_with_gradient as overwrite_with_gradient
