"""The types plugins implement and receive can be imported from the package ``alignkit.contract``."""

from importlib import import_module

import alignkit.contract
import pytest


@pytest.mark.parametrize("module", alignkit.contract._NAMES)
def test_the_package_has_every_public_name_of_the_module(module):
    source = import_module(f"alignkit.contract.{module}")
    defined = {
        name
        for name, value in vars(source).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == source.__name__
    }
    assert defined <= set(alignkit.contract._NAMES[module].split())
    for name in alignkit.contract._NAMES[module].split():
        assert getattr(alignkit.contract, name) is getattr(source, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        alignkit.contract.nothing  # noqa: B018
