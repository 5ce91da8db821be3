"""Checks shared by the conformance tests of every kind of plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from alignkit.contract import registry


def check_listing(group: registry.Group, name: str) -> None:
    """Assert that listing the plugins of a group, in a fresh process, does not import this one."""
    module = registry.find(group, name).value.partition(":")[0]
    code = "import sys; from alignkit.contract import registry; registry.entries(sys.argv[1])"
    code += "; sys.exit(sys.argv[2] in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, group, module], check=False).returncode == 0, (
        f"listing imports {module}: something imports it when Python starts (a .pth file, sitecustomize); "
        "a plugin must be imported only when it is used"
    )


def check_schema(settings_type: Any) -> None:
    """Assert that all settings are described, unknown keys are rejected and the JSON schema can be written."""
    schema = settings_type.model_json_schema(by_alias=True)
    bare = [name for name, about in schema.get("properties", {}).items() if not about.get("description")]
    assert not bare, f"settings without a description: {', '.join(bare)}; write Field(default, description=...)"
    assert settings_type.model_config.get("extra") == "forbid", (
        "settings accept unknown keys, so a misspelt one would be ignored: derive them from alignkit.Settings"
    )
    json.dumps(schema)
