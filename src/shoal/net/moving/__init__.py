"""A channel goes on over another pipe: a better way was found, or the one that it had is gone."""
