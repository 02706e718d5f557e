"""Comparing norms: a comparison becomes a plan, the plan runs, the runs become records, the records a report.

Importing this package imports neither JAX nor matplotlib; the modules that need them are imported where they are used.
"""

from normlab.study.config import Cell, Comparison, Factor, Problem, Record, Run, Settings, Tier

__all__ = ["Cell", "Comparison", "Factor", "Problem", "Record", "Run", "Settings", "Tier"]
