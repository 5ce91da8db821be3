"""What the conformance tests of every kind of plugin share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from alignkit.contract import registry
from alignkit.errors import AlignError


class InstalledPlugin:
    """An installed plugin, called by the name of its entry point."""

    group: ClassVar[registry.Group]
    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    """The plugin's settings in the tests."""

    def test_listing_does_not_import_it(self) -> None:
        """Listing the plugins of its kind reads metadata alone."""
        module = self._entry().value.partition(":")[0]
        code = "import sys; from alignkit.contract import registry; registry.entries(sys.argv[1])"
        code += "; sys.exit(sys.argv[2] in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code, self.group, module], check=False).returncode == 0, (
            f"listing imports {module}: something imports it when Python starts (a .pth file, sitecustomize); "
            "a plugin must be imported only when it is used"
        )

    def _entry(self) -> registry.PluginEntry:
        try:
            return registry.find(self.group, self.name)
        except AlignError as error:
            pytest.fail(f"{error}: is the package installed, and its entry point under {self.group}?")

    def _load(self) -> Any:
        return registry.load(self._entry())


def check_schema(settings_type: Any) -> None:
    """Assert that all settings are described, unknown keys are rejected and the JSON schema can be written."""
    schema = settings_type.model_json_schema(by_alias=True)
    bare = [name for name, about in schema.get("properties", {}).items() if not about.get("description")]
    assert not bare, f"settings without a description: {', '.join(bare)}; write Field(default, description=...)"
    assert settings_type.model_config.get("extra") == "forbid", (
        "settings accept unknown keys, so a misspelt one would be ignored: derive them from alignkit.Settings"
    )
    json.dumps(schema)
