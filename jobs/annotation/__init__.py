"""Parts of ``jobs/annotate.py``."""
