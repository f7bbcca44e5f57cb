"""Torch graph."""
