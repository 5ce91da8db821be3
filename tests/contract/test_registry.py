"""The registry finds plugins through metadata alone; a broken or rival plugin affects only its users."""

import json
import sys
from shutil import rmtree

import pytest
from alignkit.contract import registry
from alignkit.errors import PluginError

from tests.helpers.third_party import METHOD


def failure(name, group="align.methods"):
    with pytest.raises(PluginError) as caught:
        registry.load(registry.find(group, name))
    return str(caught.value)


def test_built_in_plugins_are_declared_and_load():
    names = {entry.name for entry in registry.entries("align.methods") if entry.built_in}
    assert {"sft", "dpo", "orpo"} <= names
    for group in ("align.methods", "align.suites"):
        for entry in registry.entries(group):
            assert registry.load(entry).name == entry.name


def test_a_third_party_method_is_found_and_loads(site):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    entry, method = registry.load_method("mine")
    assert str(entry) == 'method "mine" (align-mine 1.2.3)'
    assert not entry.built_in
    assert method.__module__ == "align_mine"
    assert registry.find("align.methods", "align_mine:mine") == entry  # names compare as package indexes compare them


def test_listing_imports_no_plugin(site):
    site.install("align-mine", "raise RuntimeError('imported')", mine="align_mine:Mine")
    assert "mine" in {entry.name for entry in registry.entries("align.methods")}
    assert "align_mine" not in sys.modules


def test_what_is_installed_or_removed_while_a_process_runs_is_seen(site):
    names = lambda: {entry.name for entry in registry.entries("align.methods")}
    before = names()
    for name in ("first", "second", "third"):
        info = site.install(name, METHOD, **{name: f"{name}:Mine"})
        assert name in names()
    rmtree(info)
    assert names() - before == {"first", "second"}


def test_unknown_name_suggests_and_says_how_to_list():
    assert failure("orop") == 'unknown method "orop", did you mean "orpo"? (align methods lists them)'
    assert failure("zzz", "align.rewards") == 'unknown reward "zzz" (align rewards lists them)'
    assert failure("zzz", "align.samplers") == 'unknown sampler "zzz" (align plugins lists them)'
    assert failure("zzz", "align.attention") == 'unknown attention "zzz" (align plugins lists them)'


def test_two_third_parties_with_one_name(site):
    site.install("first-pkg", METHOD, mine="first_pkg:Mine")
    site.install("second-pkg", METHOD, version="2.0", mine="second_pkg:Mine")
    message = failure("mine")
    assert "first-pkg 1.2.3 and second-pkg 2.0" in message
    assert "first-pkg:mine or second-pkg:mine" in message
    assert registry.load_method("second-pkg:mine")[1].__module__ == "second_pkg"
    assert registry.load_method("orpo")[0].built_in  # others are not concerned


def test_a_built_in_name_stays_the_built_ins(site):
    site.install("rival", METHOD.replace('"mine"', '"orpo"'), orpo="rival:Mine")
    entry, method = registry.load_method("orpo")
    assert entry.built_in
    assert method.__module__.startswith("alignkit_orpo")
    assert [other.qualified for other in registry.shadowed(entry)] == ["rival:orpo"]
    assert registry.load_method("rival:orpo")[1].__module__ == "rival"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import does_not_exist", "ModuleNotFoundError: No module named 'does_not_exist'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("", "AttributeError: module 'align_mine' has no attribute 'Mine'"),
    ],
)
def test_a_plugin_that_cannot_be_imported(site, source, cause):
    site.install("align-mine", source, mine="align_mine:Mine")
    message = failure("mine")
    assert message.startswith('method "mine" (align-mine 1.2.3) cannot be loaded from align_mine:Mine: ')
    assert cause in message


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("class Mine(Method[MineSettings])", "class Mine", "is not a subclass of alignkit.Method"),
        ('paper = "A method for tests"', "", "does not declare paper"),
        ("settings_type = MineSettings", "settings_type = dict", "settings_type that is not a pydantic model"),
        ('rows = "preference"', 'rows = "pairs"', "rows = 'pairs', which is not one of preference"),
        ('rows = "preference"', 'rows = "preference"; needs = {"referense"}', "the need 'referense'"),
        ('name = "mine"', 'name = "other"', 'declares the name "other", but its entry point is called "mine"'),
    ],
)
def test_a_method_that_declares_too_little(site, old, new, problem):
    assert old in METHOD
    site.install("align-mine", METHOD.replace(old, new), mine="align_mine:Mine")
    assert problem in failure("mine")


def test_suites_and_rewards_are_checked(site):
    site.install("align-s", "class S: name = 's'", group="suites", s="align_s:S")
    site.install("align-r", "r = 3", group="rewards", r="align_r:r")
    assert "is not a subclass of alignkit.Suite" in failure("s", "align.suites")
    assert "is neither a subclass of alignkit.Reward nor a function" in failure("r", "align.rewards")


@pytest.mark.parametrize(
    ("allowed", "usable"),
    [
        ("auto", True),
        ("", True),
        ("none", False),
        ("mine", True),
        ("Align_Mine", True),
        ("a, b", False),
        ("b,mine", True),
    ],
)
def test_align_plugins_restricts_third_parties_only(site, monkeypatch, allowed, usable):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    monkeypatch.setenv("ALIGN_PLUGINS", allowed)
    assert registry.load_method("orpo")[0].built_in
    if usable:
        assert registry.load_method("mine")
    else:
        assert failure("mine").startswith(f'method "mine" (align-mine 1.2.3) is blocked by ALIGN_PLUGINS={allowed}')


def test_a_blocked_rival_is_no_rival(site, monkeypatch):
    site.install("first-pkg", METHOD, mine="first_pkg:Mine")
    site.install("second-pkg", METHOD, mine="second_pkg:Mine")
    monkeypatch.setenv("ALIGN_PLUGINS", "second-pkg")
    assert registry.load_method("mine")[1].__module__ == "second_pkg"


def test_damaged_metadata_of_one_distribution_harms_no_other(site):
    info = site.install("torn", METHOD, mine="torn:Mine")
    (info / "entry_points.txt").write_text("[align.methods]\nmine\n")
    installed = registry.catalogue("align.methods")
    assert "orpo" in {entry.name for entry in installed.entries}
    assert [problem.partition(":")[0] for problem in installed.unreadable] == ["torn"]
    assert "distributions with unreadable entry points: torn" in failure("mine")


def test_a_distribution_without_a_name(site):
    site.install("nameless", METHOD, metadata="", mine="nameless:Mine")
    assert str(registry.find("align.methods", "mine")) == 'method "mine" (nameless unknown version)'


def test_the_first_of_two_copies_of_a_distribution_counts(site):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    site.install("align-mine", METHOD, version="0.9", mine="align_mine:Mine")
    found = [entry for entry in registry.entries("align.methods") if entry.name == "mine"]
    assert len(found) == 1


def test_listings_survive_every_broken_plugin(site):
    site.install("align-bad", "raise SystemExit('bad')", bad="align_bad:Bad")
    result = site.align("methods", "--json")
    assert result.returncode == 0
    assert result.stderr == ""
    listed = {record["name"]: record for record in json.loads(result.stdout)}
    assert listed["orpo"]["built_in"] is True
    assert listed["bad"] == {
        "name": "bad",
        "distribution": "align-bad",
        "version": "1.2.3",
        "group": "align.methods",
        "value": "align_bad:Bad",
        "summary": "For tests",
        "built_in": False,
        "blocked": False,
    }
