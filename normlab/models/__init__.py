"""Networks that take a norm as a value."""

from normlab.models.gpt import GPT
from normlab.models.lstm import LSTMNet
from normlab.models.mlp import MLP, ConvNet
from normlab.models.resnet import ResNet, ResNet50
from normlab.models.vgg import VGG
from normlab.models.vit import ViTTiny

__all__ = ["MLP", "ConvNet", "VGG", "ResNet", "ResNet50", "ViTTiny", "GPT", "LSTMNet"]
