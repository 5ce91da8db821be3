"""Faulty installed packages: each fault has its own message and affects nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import AlignError
from alignkit.training.session import Session
from alignkit_commands.inventory import inventory

from tests.helpers.engine import configuration
from tests.helpers.runs import short_run

BODY = """
import torch
from alignkit import Batch, LossOutput, LossTerm, Method, Metric, Settings, hookimpl
from pydantic import Field

class FaultySettings(Settings):
    strength: float = Field(1.0, description="of the fault")

class Faulty(Method[FaultySettings]):
    name, paper, rows, settings_type = "faulty", "none", "preference", FaultySettings
    {more}

    @hookimpl
    def {hook}(self, {arguments}):
        logps = policy.score(batch.examples).logps
        return {answer}
"""
TERMS = 'LossOutput([LossTerm("faulty", {}, "rows")])'


def package(
    more: str = "", hook: str = "align_compute_loss", arguments: str = "policy, batch", answer: str = ""
) -> str:
    return BODY.format(more=more, hook=hook, arguments=arguments, answer=answer or TERMS.format("logps.sum()"))


# Source of the package, and the error message of a run that uses it.
FAULTS: dict[str, tuple[str, str]] = {
    "raises at import": (
        "1 / 0",
        r'method "faulty" \(align-faulty 1\.2\.3\) cannot be loaded .*: ZeroDivisionError: division by zero',
    ),
    "ends Python": ("import sys; sys.exit(7)", "cannot be loaded .*: SystemExit: 7"),
    "imports what is missing": ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
    "is not a method": ("Faulty = 3", r"cannot be used: align_faulty:Faulty is not a subclass of alignkit\.Method"),
    "is not there": ("", "cannot be loaded .*: AttributeError"),
    "misspelt hook": (
        package(hook="align_compute_los"),
        '"align_compute_los", which is not a hook, did you mean "align_compute_loss"',
    ),
    "default argument": (package(arguments="policy, batch=None"), 'gives its argument "batch" a default'),
    "unknown argument": (package(arguments="policy, batches"), 'has no argument "batches", did you mean "batch"'),
    "newer contract": (
        package(more="contract = 2"),
        "was written for contract 2, and this alignkit has contract 1: upgrade alignkit",
    ),
    "unknown need": (package(more='needs = frozenset({"telepathy"})'), "declares the need 'telepathy'"),
    "wrong shape": (package(answer=TERMS.format("logps")), r'term "faulty" must be a sum \(a 0-dimensional tensor\)'),
    "a number": (package(answer=TERMS.format("1.0")), 'term "faulty" must be a tensor, not float'),
    "unknown count": (
        package(answer='LossOutput([LossTerm("faulty", logps.sum(), "pairs")])'),
        'per "pairs", which is not a count',
    ),
    "detached": (
        package(answer=TERMS.format("logps.sum().detach()")),
        "no term with a gradient: was the policy scored with grad=False",
    ),
    "nothing": (package(answer="None"), "must return an alignkit.LossOutput, not NoneType"),
    "not a number": (
        package(answer=TERMS.format("logps.sum() * float('nan')")),
        "non-finite loss at step 1, rows .*the weights were not updated",
    ),
    "an exception": (package(answer="undefined"), "name 'undefined' is not defined"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_said(site: Any, tmp_path: Path, fault: str) -> None:
    source, says = FAULTS[fault]
    site.install("align-faulty", source, faulty="align_faulty:Faulty")
    evaluation = {"suites": [], "samples": 0}
    with pytest.raises((AlignError, NameError), match=f"(?s){says}") as caught:
        short_run(tmp_path, "run", "faulty", eval=evaluation, run={"plots": False}, data={"limit": 40, "eval_limit": 4})
    if isinstance(caught.value, NameError):
        assert any("align_compute_loss" in note and "align-faulty" in note for note in caught.value.__notes__)
    Session.open(configuration("orpo"))  # runs that do not use it are not affected
    (found,) = [plugin for plugin in inventory() if plugin.name == "faulty"]
    seen_at_once = (
        "import",
        "Python",
        "missing",
        "not a method",
        "not there",
        "hook",
        "argument",
        "contract",
        "unknown need",
    )
    assert (found.state == "broken") == any(word in fault for word in seen_at_once), found


def test_a_service_that_takes_the_method_s_place(site: Any) -> None:
    source = """
    from alignkit import hookimpl

    class Greedy:
        @hookimpl
        def align_compute_loss(self, policy, batch):
            return None
    """
    site.install("align-greedy", source, group="services", greedy="align_greedy:Greedy")
    config = configuration("orpo")
    config.run.services = ["greedy"]
    with pytest.raises(
        AlignError, match=r"greedy.* implements align_compute_loss, which belongs to .*orpo.*: it may only wrap it"
    ):
        Session.open(config)


def test_two_packages_with_one_name(site: Any) -> None:
    site.install("align-one", package(), faulty="align_one:Faulty")
    site.install("align-two", package(), faulty="align_two:Faulty")
    with pytest.raises(AlignError, match=r"provided by align-one 1\.2\.3 and align-two 1\.2\.3: write"):
        Session.open(configuration("faulty"))
    assert Session.open(configuration("align-two:faulty")).method.name == "faulty"


def test_a_slow_import_is_paid_by_its_users_alone(site: Any) -> None:
    site.install("align-slow", "import time\ntime.sleep(60)\n" + package(), faulty="align_slow:Faulty")
    began = time.monotonic()
    assert "faulty" in site.align("methods").stdout
    assert site.align("--help").returncode == 0
    assert site.align("schema", "orpo").returncode == 0
    assert time.monotonic() - began < 60
