"""How many threads PyTorch takes in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["use_one_thread"]


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: beside workers on every core, several threads wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
