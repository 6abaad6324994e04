"""A drawn world with exact masks, small models trained on it, and a demonstration of the jobs."""
