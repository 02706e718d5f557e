"""Analysis of records: estimates, gaps and verdicts."""
