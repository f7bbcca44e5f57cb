"""What the server's benchmarks, and its tests, are run against."""
