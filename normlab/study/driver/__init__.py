"""The driver: the loop, its checks before the first run, merging and verifying."""
