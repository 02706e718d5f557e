"""Planted faults, healthy models, and how often the doctor is right about both."""
