"""Core's own commands, declared as entry points of the group ``align.commands`` in pyproject.toml, as any package declares its own."""

from __future__ import annotations

from alignkit.contract.commands import Command

RUN = Command(
    "alignkit.cli.runs:run", "Train a model with one method and evaluate it before and after.", distributed=True
)
RESUME = Command("alignkit.cli.runs:resume", "Resume an interrupted run.", distributed=True)
