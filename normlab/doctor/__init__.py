"""Find out what is wrong with the norms of a model."""

from normlab.doctor.findings import Finding, Measurement, Skipped
from normlab.doctor.report import Report
from normlab.doctor.thresholds import Thresholds
