"""Commands of `normlab`."""
