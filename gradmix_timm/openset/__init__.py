"""Open set evaluation: scores of knownness, rank metrics, intervals; import the module you need."""
