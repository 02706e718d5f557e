"""Norms by moving statistics, with a backward pass of their own."""
