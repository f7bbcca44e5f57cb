"""What `benchmarks/drift.py` measures: populations to draw from, and detectors."""
