"""The checks, each a function whose docstring says what it finds and how."""
