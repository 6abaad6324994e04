"""Parts of ``jobs/filter.py``."""
