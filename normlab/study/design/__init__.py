"""Comparisons, plans and the keys of records; imports no JAX."""
