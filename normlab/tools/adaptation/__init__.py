"""Parts of `normlab.tools.adapt`: which norms adapt, by which statistics they normalize, and how TENT moves them."""
