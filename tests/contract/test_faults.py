"""Faulty installed packages: each fault has its own message and affects nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
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
    "an exception": (
        package(answer="undefined"),
        r"align-faulty 1\.2\.3\) failed in align_compute_loss: NameError: name 'undefined' is not defined \(.*align_faulty\.py:\d+\)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_said(site: Any, tmp_path: Path, fault: str) -> None:
    source, says = FAULTS[fault]
    site.install("align-faulty", source, faulty="align_faulty:Faulty")
    evaluation = {"suites": [], "samples": 0}
    with pytest.raises(AlignError, match=f"(?s){says}"):
        short_run(tmp_path, "run", "faulty", eval=evaluation, run={"plots": False}, data={"limit": 40, "eval_limit": 4})
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


HOOK = "from alignkit import RawRows, hookimpl\n@hookimpl\ndef {}\n"
SERVICES = {
    "leaves while it logs": ("align_log(record): raise SystemExit(0)", "failed", r"failed in align_log: SystemExit: 0"),
    "ends the process": (
        "align_log(record): import os; os._exit(0)",
        "failed",
        r"failed in align_log: SystemExit: os\._exit\(0\)",
    ),
    "fails when all is done": ("align_run_finished(summary): 1 / 0", "finished", r"failed in align_run_finished: Zero"),
    "loads a list": ("align_load_data(source): return [1]", None, r"must return alignkit\.RawRows .*not list"),
}


@pytest.mark.parametrize("fault", SERVICES)
def test_a_faulty_service_leaves_status_and_exit_code_right(site: Any, tmp_path: Path, fault: str) -> None:
    source, status, says = SERVICES[fault]
    site.install("align-bad", HOOK.format(source), group="services", bad="align_bad")
    with pytest.raises(AlignError, match=rf'service "bad" \(align-bad 1\.2\.3\).*{says}') as caught:
        short_run(
            tmp_path,
            "run",
            eval={"suites": [], "samples": 0},
            data={"limit": 40, "eval_limit": 4},
            run={"plots": False, "services": ["bad"]},
        )
    assert caught.value.exit_code == (2 if status is None else 1)
    record = json.loads((tmp_path / "run" / "run.json").read_text()) if status else {}
    assert (record.get("status"), record.get("error")) == (status, str(caught.value) if status else None)
    assert (tmp_path / "run" / "model" / "README.md").is_file() == (status == "finished")


BAD_SUITE = """
from alignkit import Settings, Suite
print("imported")

class Bad(Suite[Settings]):
    name, settings_type = "bad", Settings

    def evaluate(self, target):
        {}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise SystemExit(0)", 'suite "bad" (align-bad 1.2.3) failed: SystemExit: 0'),
        ("import os; os._exit(0)", 'suite "bad" (align-bad 1.2.3) failed: SystemExit: os._exit(0)'),
        ("return {'accuracy': 1.0}", "suite bad: evaluate must return an alignkit.SuiteResult, not dict"),
    ],
)
def test_a_faulty_suite_is_named(site: Any, body: str, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    site.install("align-bad", BAD_SUITE.format(body), group="suites", bad="align_bad:Bad")
    assert main(["eval", "demo", "--suite", "bad", "--json"]) == (1 if "failed" in says else 2)
    out, err = capfd.readouterr()
    assert (out, err.splitlines()) == ("", ["imported", f"Error: {says}"])


def test_what_a_plugin_prints_is_kept_out_of_json(
    site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    print_and_count = BAD_SUITE.format("import os; os.write(1, b'written'); print('said')\n        return result(self)")
    result = "from alignkit import Estimate, SuiteResult\n\ndef result(suite):\n"
    result += "    return SuiteResult('bad', 1, 1, {'m': Estimate(0.5)}, [{'id': 'a', 'cluster': 'a'}])\n"
    site.install("align-bad", result + print_and_count, group="suites", bad="align_bad:Bad")
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "demo", "--suite", "bad", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)[0]["suites"]["bad"]["metrics"]["m"]["value"] == 0.5
    assert "written" in err


def test_two_packages_with_one_name(site: Any) -> None:
    site.install("align-one", package(), faulty="align_one:Faulty")
    site.install("align-two", package(), faulty="align_two:Faulty")
    with pytest.raises(AlignError, match=r"provided by align-one 1\.2\.3 and align-two 1\.2\.3: write"):
        Session.open(configuration("faulty"))
    assert Session.open(configuration("align-two:faulty")).method.name == "faulty"


def test_a_slow_import_is_paid_by_its_users_alone(site: Any) -> None:
    notes = "from pathlib import Path\nPath(__file__).with_name('imported').touch()\n"
    site.install("align-slow", notes + package(), faulty="align_slow:Faulty")
    assert "faulty" in site.align("methods").stdout
    assert site.align("--help").returncode == 0
    assert site.align("schema", "orpo").returncode == 0
    assert not (site.path / "imported").exists()
    assert site.align("run", "--method", "faulty", "--dry-run").returncode == 0
    assert (site.path / "imported").exists()
