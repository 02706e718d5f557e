"""Workers: one process makes and stores the records of runs."""
