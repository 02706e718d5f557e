"""A user's Flax model from outside: as pure functions, where its norms are, what they are given, their statistics."""
