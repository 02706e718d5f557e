"""Parts of `from_torch`, `from_keras`, `from_haiku` and their inverses: layouts, matching, transfer."""
