"""The result for people: a summary in the terminal and a page that needs nothing but itself."""

from rich.console import Console

from edgewright.contract.candidate import Report

__all__ = ["page", "print_summary"]


def page(report: Report) -> str:
    """Return the report as one HTML document."""
    return f"<!doctype html><title>Edgewright</title><p>{report.verdict}</p>"


def print_summary(report: Report, console: Console) -> None:
    """Print what matters."""
    console.print(report.verdict)
