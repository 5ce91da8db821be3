"""Configuration: reading files and the command line, merging them with defaults, validation, and writing YAML.

Precedence, highest first: command line, file, the demo's preset (if model and data are the demo), the method's defaults, the
defaults of the sections.
"""

from __future__ import annotations

from alignkit.settings.resolve import Resolved as Resolved
from alignkit.settings.resolve import check_config as check_config
from alignkit.settings.resolve import dump as dump
from alignkit.settings.resolve import from_sets as from_sets
from alignkit.settings.resolve import method_settings as method_settings
from alignkit.settings.resolve import resolve as resolve
from alignkit.settings.resolve import resolve_layers as resolve_layers
from alignkit.settings.yaml_files import read as read
from alignkit.settings.yaml_files import write as write
