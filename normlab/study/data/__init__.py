"""On what? Data sets."""
