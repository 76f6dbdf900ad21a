"""Where a model can be put, how it is served, and the one-machine stack. Knows nothing of drift or training."""
