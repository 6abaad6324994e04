"""Histories of runs over a storage that fails, drawn from a seed."""
