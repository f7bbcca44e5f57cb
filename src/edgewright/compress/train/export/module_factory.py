"""The user's PyTorch module, from the factory `module:function` that makes it."""

import torch
from torch import nn

from edgewright.compress.data.sources.function import load_function
from edgewright.contract.errors import InputError

__all__ = ["load_module"]


def load_module(reference: str) -> nn.Module:
    """Import `package.module:factory`, looking in the current folder first, and call it.

    The name after the colon is a function without arguments, a class, or a module that exists already. It brings
    its trained weights along: nothing is loaded into it here.

    Returns:
        The module in evaluation mode on the CPU.

    Raises:
        InputError: The factory cannot be imported, raises, or returns something else.
    """
    factory = load_function(reference)
    if isinstance(factory, nn.Module):
        made: object = factory
    else:
        try:
            made = factory()
        except Exception as error:  # the user's code may raise anything
            raise InputError(
                f"{reference} raised {type(error).__name__}: {error}",
                remedy="Call it by itself, without arguments, to see where.",
            ) from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{reference} returned {_kind(made)}, not a torch.nn.Module",
            remedy="Return the module itself, with its trained weights loaded.",
        )
    return made.cpu().eval()


def _kind(made: object) -> str:
    if isinstance(made, dict) and made and all(isinstance(value, torch.Tensor) for value in made.values()):
        return "weights (a state dict)"
    return type(made).__name__
