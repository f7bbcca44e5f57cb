"""Compression with training: ONNX graphs as trainable modules, lessons, jobs, and engines that perform them."""

__all__: list[str] = []
