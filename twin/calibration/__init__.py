"""Turn measurements of a model on a GPU into a performance profile."""
