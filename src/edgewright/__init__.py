"""Fit a trained model to a class of edge devices, prove that it fits, and keep it working there.

>>> import edgewright
>>> edgewright.__version__.count(".")
2
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
