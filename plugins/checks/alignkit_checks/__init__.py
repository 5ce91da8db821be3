"""The built-in rules of ``align data check`` on the text of rows."""

from alignkit_checks.rules import RULES as RULES
