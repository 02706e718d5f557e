"""Norms made of several, or with statistics for several sets of examples."""
