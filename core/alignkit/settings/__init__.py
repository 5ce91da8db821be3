"""Configuration: reading files and the command line, merging them with defaults, validation, and writing YAML.

Precedence, highest first: command line, file, the demo's preset (if model and data are the demo), the method's defaults, the
defaults of the sections.
"""

from __future__ import annotations

from alignkit.settings.resolve import Resolved, check_config, dump, from_sets, method_settings, resolve, resolve_layers
from alignkit.settings.yaml_files import read, write

__all__ = ["Resolved", "check_config", "dump", "from_sets"]
__all__ += ["method_settings", "read", "resolve", "resolve_layers", "write"]
