"""What is asked? Comparisons, plans and the keys of records; imports no JAX."""
