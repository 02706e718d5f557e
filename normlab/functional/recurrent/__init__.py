"""Recurrent cells with a norm inside, as pure functions."""
