"""``align data check`` and its built-in rules. Importing this loads nothing heavy."""

from alignkit import Command

DATA = Command("alignkit_checks.cli:data", "Check data before training on it.")
