"""How is it typed? The commands of `normlab`."""
