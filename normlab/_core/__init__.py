"""Building blocks of norms: checks, axes, reductions, moments, running averages, standardization."""
