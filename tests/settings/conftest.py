"""Fixtures of configuration tests."""

import pytest
from alignkit import settings
from alignkit.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Write a configuration file and return its path."""

    def to_file(text, name="orpo.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def refused():
    """Resolve a configuration that is refused, and return the message."""

    def message(file=None, **options):
        with pytest.raises(ConfigError) as caught:
            settings.resolve(file, **options)
        return str(caught.value)

    return message
