"""Inputs that a model was not made for, attacks on it, and how well they are found."""

__all__: list[str] = []
