"""Fit a trained model to a class of edge devices, prove that it fits, and keep it working there.

>>> import edgewright
>>> edgewright.__version__.count(".")
2
"""

import os

# onnxruntime's builds may report usage to their maker; what runs on a user's device is the user's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["__version__"]

__version__ = "0.1.0"
