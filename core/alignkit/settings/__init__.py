"""From file, command line and plugins' defaults to one checked configuration, and back to YAML.

Precedence: command line, file, the demo's preset (where model and data are the demo), the method's defaults, the
sections' defaults.
"""

from __future__ import annotations

from alignkit.settings.resolve import Resolved, check_config, dump, from_sets, method_settings, resolve, resolve_layers
from alignkit.settings.schema import schema
from alignkit.settings.yaml_files import read, write

__all__ = [
    "Resolved",
    "check_config",
    "dump",
    "from_sets",
    "method_settings",
    "read",
    "resolve",
    "resolve_layers",
    "schema",
    "write",
]
