"""How norms of a model are replaced: options, values, and the model around them."""
