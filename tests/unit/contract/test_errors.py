import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import edgewright
from edgewright.contract.errors import EdgewrightError, InputError


def all_errors() -> list[type[EdgewrightError]]:
    for module in pkgutil.walk_packages(edgewright.__path__, "edgewright."):
        if not module.name.startswith("edgewright.server.store.migrations"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "tpm2_pytss":
                    raise
    return list(below(EdgewrightError))


def below(kind: type[EdgewrightError]) -> Iterator[type[EdgewrightError]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("edgewright."):
            yield each
            yield from below(each)


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [each.code for each in all_errors()]
    assert len(set(codes)) == len(codes)


def test_an_error_without_a_code_is_refused_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="NamelessError needs a code"):

        class NamelessError(InputError):
            pass


def test_a_code_is_not_made_of_the_name_of_a_class() -> None:
    assert all(each.code == each.code.lower() and not each.code.endswith("error") for each in all_errors())
