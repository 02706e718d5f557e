"""Measurements on an accelerator, one command: `python -m benchmarks.accelerator`."""
