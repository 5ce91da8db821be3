"""The installed rules of data checks, applied to rows: before training, and by ``align data check``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from alignkit.config import CheckConfig
from alignkit.contract import DataRule, Row
from alignkit.contract.registry import load, usable
from alignkit.data.table.tokenised_rows import TextRows, TokenisedRows
from alignkit.errors import ConfigError, DataError, PluginError, suggest
from alignkit.system.cache import ContentCache
from alignkit.system.code import code_of
from alignkit.system.environment import versions
from alignkit.system.files import digest, write_json

if TYPE_CHECKING:
    from alignkit.data.load import Data

log = logging.getLogger(__name__)

EXAMPLES = 5
"""Rows a finding shows."""

_CACHE = ContentCache("checks", ".json")


@dataclass(frozen=True)
class Finding:
    """The rows found by one rule."""

    rule: str
    title: str
    count: int
    rate: float
    """Share of all rows."""
    drops: bool
    """Whether ``--fix`` removes the rows."""
    examples: Sequence[Mapping[str, str]]
    """The first few: ``place`` (file:line), ``row`` (its id), ``about``."""


def installed_rules() -> list[DataRule]:
    """Return the rules of every installed package; a package whose rules cannot be loaded is named in a warning."""
    found: list[DataRule] = []
    for entry in usable("align.rules").values():
        try:
            found += load(entry)
        except PluginError as error:
            log.warning("data check: %s", error)
    return found


def find(
    rows: Sequence[Row], held_out: Sequence[Row], limits: CheckConfig, total: int, more: Sequence[DataRule] = ()
) -> tuple[list[Finding], dict[int, str]]:
    """Apply the installed rules, and ``more``, to rows; return the findings, and row -> rule of the rows a rule drops."""
    findings: list[Finding] = []
    dropped: dict[int, str] = {}
    for rule in [*installed_rules(), *more]:
        if not (hits := list(rule.find(rows, held_out, limits))):
            continue
        shown = [{"place": rows[h.row].place, "row": rows[h.row].id, "about": h.about} for h in hits[:EXAMPLES]]
        findings.append(Finding(rule.name, rule.title, len(hits), len(hits) / total, rule.drops, shown))
        dropped |= {hit.row: rule.name for hit in hits if rule.drops and hit.row not in dropped}
    return findings, dropped


def check_before_training(data: Data, limits: CheckConfig) -> list[str]:
    """Check the training rows, and the held-out rows for leaks; return one log line per finding.

    Findings are cached by content, so that the runs of a sweep check the same rows once.

    Raises:
        ConfigError: ``most`` names an unknown rule.
        DataError: a rule found a larger share of the rows than ``most`` allows.
    """
    known = [rule.name for rule in installed_rules()] if limits.most else []
    for rule in limits.most:
        if rule not in known:
            raise ConfigError(
                f'data.check.most: unknown rule "{rule}"{suggest(rule, known)} (known: {", ".join(known)})'
            )
    if not limits.enabled:
        return []
    rows = _evenly(data.train, limits.rows)
    findings = _findings(rows, _evenly(data.eval, limits.rows), limits)
    checked = "" if len(rows) == len(data.train) else f" of {len(rows):,} checked"
    lines = []
    for finding in findings:
        count, rate, title = f"{finding.count:,}", f"({finding.rate:.1%})", f"{finding.title} [{finding.rule}]"
        first = f"(first: {finding.examples[0]['place']}: {finding.examples[0]['about']})"
        allowed = limits.most.get(finding.rule)
        if allowed is not None and finding.rate > allowed:
            limit = f"but data.check.most allows {allowed:.1%}"
            raise DataError(f"data check: {count} of {len(rows):,} rows {rate}: {title}, {limit} {first}")
        lines.append(f"data check: {count}{checked} {rate} {title} {first}")
    return lines


def _evenly(rows: TokenisedRows, most: int) -> TokenisedRows:
    """Return at most ``most`` rows, evenly spaced."""
    return rows if len(rows) <= most else rows.select(np.linspace(0, len(rows) - 1, most).astype(np.int64))


def _findings(rows: TokenisedRows, held_out: TokenisedRows, limits: CheckConfig) -> Sequence[Finding]:
    settings = limits.model_dump(mode="json", exclude={"most", "enabled", "rows"})
    rules = [(entry.qualified, entry.version, code_of(entry.value)) for entry in usable("align.rules").values()]
    texts = [(found.digest("place"), [part.table.root for part in found.parts]) for found in (rows, held_out)]
    return _CACHE.fetch(
        digest([versions(), rules, texts, settings]),
        lambda: find(TextRows(rows)[:], TextRows(held_out)[:], limits, len(rows))[0],
        read=lambda path: [Finding(**finding) for finding in json.loads(path.read_bytes())],
        write=lambda path, made: write_json(path, made()),
    )[0]
