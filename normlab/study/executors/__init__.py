"""Executors: workers on this machine, on SLURM and on Ray, and groups of processes."""
