"""Parts of `precise` and `collect`: how moments of the inputs of norms are collected, batch by batch."""
