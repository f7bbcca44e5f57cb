"""Requests to pages, and back: thin, for what is shown is made in `shown` and what is done in `acts`."""

__all__: list[str] = []
