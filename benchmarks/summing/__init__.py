"""What `benchmarks/sums.py` measures, one file per question, and the fleet in memory that tests use too."""
