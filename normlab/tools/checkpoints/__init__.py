"""Parts of `normlab.tools.checkpoint`: files, trees of variables, and the changes that they have recorded."""
