"""Named shapes of real models, for tests and measurements."""

SHAPES: dict[str, tuple[int, ...]] = {
    "transformer": (8192, 768),  # 16 sequences of 512 tokens, width 768
    "small image net": (64, 32, 32, 64),  # CIFAR-sized activations of an early stage
    "ResNet-50 stage 1": (32, 56, 56, 256),
}
"""Activations, features last."""
