"""What measures speed, memory and agreement; run as ``python -m benchmarks.NAME``."""
