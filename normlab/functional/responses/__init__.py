"""Norms that divide and do not subtract a mean; some are activations, too."""
