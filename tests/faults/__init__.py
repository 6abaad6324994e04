"""Things die while the job runs; afterwards every image has exactly one row."""
