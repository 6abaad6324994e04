"""Formats of ``jobs/export.py``."""
