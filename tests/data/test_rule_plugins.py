"""Rules of data checks from other packages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.third_party import Site

RULES = """
from alignkit import DataRule, Hit, texts_of

def many_links(rows, held_out, limits):
    for i, row in enumerate(rows):
        if any(text.count("://") > 1 for _, text in texts_of(row)):
            yield Hit(i, f"held out: {len(held_out)}")

RULES = (DataRule("links", "texts with many links", many_links),)
"""


def rows(path: Path) -> Path:
    pair = {"prompt": "where is it ?", "chosen": " at http://a or http://b .", "rejected": " nowhere at all ."}
    other = {"prompt": "what is a whale ?", "chosen": " a mammal .", "rejected": " a fish ."}
    path.write_text(json.dumps(pair) + "\n" + json.dumps(other) + "\n")
    return path


def test_a_rule_of_another_package_is_applied_by_the_check_and_before_training(site: Site, tmp_path: Path) -> None:
    site.install("align-links", RULES, group="rules", links="align_links:RULES")
    data, fixed = rows(tmp_path / "prefs.jsonl"), tmp_path / "fixed.jsonl"
    done = site.align("data", "check", data, "--eval-data", data, "--fix", fixed)
    assert "1 (50.0%) texts with many links [links]" in done.stdout
    assert "prefs.jsonl:1: held out: 2" in done.stdout
    limits = ("--set", "data.check.most={links: 0.1}", "--set", "data.eval_split=0", "--dry-run")
    refused = site.align("run", "--method", "orpo", "--data", data, *limits)
    assert refused.returncode == 2
    assert "1 of 2 rows (50.0%): texts with many links [links], but data.check.most allows 10.0%" in refused.stderr


def test_rules_that_cannot_be_loaded_are_named_and_the_others_applied(site: Site, tmp_path: Path) -> None:
    site.install("align-links", "1 / 0", group="rules", links="align_links:RULES")
    path = rows(tmp_path / "prefs.jsonl")
    path.write_text(path.read_text() * 2)
    done = site.align("data", "check", path)
    assert done.returncode == 0
    assert 'rule "links" (align-links 1.2.3) cannot be loaded' in done.stderr
    assert "ZeroDivisionError" in done.stderr
    assert "2 (50.0%) duplicate rows [duplicate]" in done.stdout
