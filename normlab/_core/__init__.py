"""What norms are made of: checks, axes, reductions, moments, running averages, standardization."""
