"""Parts of ``jobs/report.py``."""
