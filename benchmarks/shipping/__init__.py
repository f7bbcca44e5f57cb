"""What `benchmarks/ship.py` measures, one file per question."""
