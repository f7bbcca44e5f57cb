"""Measuring a model on a target: latency, memory, energy, heat."""

__all__: list[str] = []
