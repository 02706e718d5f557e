"""Find out what is wrong with the norms of a model."""

from normlab.doctor.examine import examine
from normlab.doctor.findings import Finding, Measurement, Severity, Skipped
from normlab.doctor.report import Report
from normlab.doctor.thresholds import Thresholds
from normlab.doctor.watching import Watch as watch
from normlab.doctor.watching import Watched

__all__ = ["Finding", "Measurement", "Report", "Severity", "Skipped", "Thresholds", "Watched", "examine", "watch"]
