"""Training and measurement of one model."""
