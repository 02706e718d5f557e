"""Constants of the test-then-train protocol, and the names of its metrics."""

PARTS = 50
"""Parts of a stream over which errors are averaged; windows of drops and recovery are equally long."""

PREFIX = 0.2
"""Share of a single real stream that chooses learning rates, and is not reported on."""

RECOVERED_WITHIN = 0.02
"""Difference to the error before a drift within which a model has recovered."""

SETTLED = 5
"""Parts of the stream over which the mean error counts as its level."""

DROP = "rise of the error in the window after a drift"
RECOVERY = "examples until recovered"
NOT_RECOVERED = "drifts not recovered from"
LOST = "additional errors until recovered"
FINAL = "error on all tasks at the end"
FORGETTING = "forgetting"
ALL_TASKS = "cross-task effect: that error minus the one by statistics of all tasks"
