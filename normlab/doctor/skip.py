"""The reason why a check is not made."""

__all__ = ["Skip"]


class Skip(Exception):
    """Raised by a check that cannot be made; its text is the reason."""
