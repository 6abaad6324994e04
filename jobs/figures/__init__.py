"""Parts of ``jobs/figure.py``."""
