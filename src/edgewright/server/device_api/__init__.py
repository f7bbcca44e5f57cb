"""Device api."""
