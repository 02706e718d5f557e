"""Inspect a Flax model: apply it as pure functions, find its norms, capture their inputs, read their statistics."""
