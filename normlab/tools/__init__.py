"""Tools for a user's model: its running statistics, estimated again."""
