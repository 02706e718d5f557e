"""The ground of the studies of claims: data, training, estimates, verdicts, figures and the command line."""
