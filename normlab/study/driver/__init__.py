"""Who drives? The loop, its checks before the first run, merging and verifying."""
