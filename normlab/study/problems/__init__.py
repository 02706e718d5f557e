"""Which problems are there? Supervised and streaming ones, and a zoo."""
