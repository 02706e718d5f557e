"""Networks that take a norm as a value."""
