"""Norms that take out the correlation of features, too."""
