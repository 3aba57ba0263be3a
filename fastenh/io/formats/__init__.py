"""Photo formats: one file for each, listed in `registry`."""
