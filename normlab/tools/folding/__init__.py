"""Parts of `normlab.tools.fold`: arithmetic, layers, decisions, and the two APIs of Flax."""
