"""The command line: imports, output, error messages and exit codes."""

import json
import os
import re
import subprocess
import sys

import click
import pytest
from alignkit import __version__
from alignkit.cli import align, run_command
from alignkit.cli.failures import State, explain
from alignkit.contract import registry
from alignkit.errors import AlignError, InterruptedRun, RunFailedError
from alignkit.system import quiet
from click.testing import CliRunner

from tests.helpers.runs import ALIGN
from tests.helpers.third_party import METHOD

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "peft",
    "numpy",
    "pydantic",
    "alignkit_sft",
    "alignkit_orpo",
    "alignkit_eval.cli.evaluate",
    "alignkit_eval.report",
)


def python(code, **environment):
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables, timeout=900)


def test_an_interrupt_while_modules_are_imported_has_no_traceback():
    done = python(
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'alignkit.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from alignkit.__main__ import main\n"
        "sys.exit(main(['methods']))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


# ------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        *([group, "--json"] for group in ("methods", "suites", "rewards", "services")),
    ],
)
def test_help_and_listings_load_nothing_heavy(arguments):
    # `align --help` reads the harness's declarations of its commands; no other command needs them
    unwanted = HEAVY if arguments == ["--help"] else (*HEAVY, "alignkit_eval")
    result = python(f"""
import sys
from alignkit.__main__ import main
code = main({arguments!r})
print([name for name in {unwanted!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
""")
    assert (result.returncode, result.stderr.strip()) == (0, "[]")


def test_every_command_in_the_help_exists():
    listed = CliRunner().invoke(align, ["--help"]).output
    names = align.list_commands(click.Context(align))
    assert {"run", "resume", "data", "eval", "compare", "sweep", "pipeline"} <= set(names)
    for name in names:
        assert re.search(rf"^  {name} +\w", listed, re.MULTILINE)
        loaded = align.get_command(click.Context(align), name)
        assert loaded.name == name
        assert loaded.get_short_help_str(200)
        assert registry.load(registry.find("align.commands", name)).summary.endswith(".")


def test_the_environment_is_set_before_torch_and_leaves_the_users_values():
    code = "import os; from alignkit.__main__ import main; main(['--version']); print(os.environ['OMP_WAIT_POLICY'])"
    names = list(quiet.ENVIRONMENT)
    assert python(f"import os; [os.environ.pop(n, 0) for n in {names}]; {code}").stdout.split()[-1] == "PASSIVE"
    assert python(code, OMP_WAIT_POLICY="ACTIVE").stdout.split()[-1] == "ACTIVE"


def test_libraries_write_to_the_log_and_not_to_the_console(tmp_path):
    log = tmp_path / "train.log"
    result = python(f"""
import logging, warnings
from alignkit.system.quiet import quiet_libraries
handler = logging.FileHandler({str(log)!r})
quiet_libraries(handler)
import datasets, huggingface_hub, trl
quiet_libraries(handler)
from transformers.utils import logging as transformers_logging
transformers_logging.get_logger("transformers.modeling_utils").warning("from transformers")
datasets.logging.get_logger("datasets.builder").error("from datasets")
huggingface_hub.logging.get_logger("huggingface_hub.x").warning("from the hub")
logging.getLogger("trl.trainer").warning("from trl")
warnings.warn("from Python", UserWarning)
from tqdm.auto import tqdm
from datasets import Dataset
Dataset.from_list([{{"a": 1}}]).map(lambda row: row)
quiet_libraries()
warnings.warn("to no log", UserWarning)
""")
    assert (result.stdout, result.stderr) == ("", "")
    logged = log.read_text()
    for source in ("transformers", "datasets", "the hub", "trl", "Python"):
        assert f"from {source}" in logged
    assert "to no log" not in logged


# ------------------------------------------------------------------------------------------------- output


def test_version_and_listing(site):
    assert site.align("--version").stdout == f"align, version {__version__}\n"
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    listing = site.align("methods")
    rows = [line.split() for line in listing.stdout.splitlines()]
    assert rows[0] == ["NAME", "DISTRIBUTION", "DESCRIPTION"]
    assert [row for row in rows if row[:4] == ["orpo", "alignkit", __version__, "NLL"]]
    assert [row for row in rows if row[:3] == ["mine", "align-mine", "1.2.3"]]
    blocked = site.align("methods", ALIGN_PLUGINS="none").stdout
    assert "blocked by ALIGN_PLUGINS" in blocked
    assert "tensorboard" in site.align("services").stdout


def test_listing_says_how_to_use_a_shared_name_and_what_cannot_be_read(site):
    site.install("rival", METHOD, orpo="rival:Mine")
    (site.install("torn", "", mine="torn:Mine") / "entry_points.txt").write_text("[align.methods]\nmine\n")
    listing = site.align("methods")
    assert "use it as rival:orpo" in listing.stdout
    assert listing.stderr.startswith("Note: unreadable entry points: torn: ")
    assert listing.returncode == 0


def test_schema_is_json():
    result = CliRunner().invoke(align, ["schema", "orpo"])
    assert json.loads(result.output)["title"] == "align run: orpo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], 'Error: unknown command "rnu", did you mean "run"? (align --help lists them)\n'),
        (["run", "--methd", "orpo"], "No such option"),
        (["run", "--seed", "-1"], "-1 is not in the range x>=0"),
        (
            ["run", "--method", "orop"],
            'Error: unknown method "orop", did you mean "orpo"? (align methods lists them)\n',
        ),
        (["run"], "Error: no method given: use --method NAME"),
        (["run", "none.yaml"], "Error: none.yaml: no such file\n"),
        (
            ["run", "--method", "orpo", "--set", "lamda=1"],
            'Error: --set lamda=1: unknown key method.lamda, did you mean "lambda"?\n',
        ),
        (["schema", "orop"], 'Error: unknown method "orop"'),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert run_command(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_broken_plugin_used_by_a_run(site):
    site.install("align-bad", "raise SystemExit(0)", bad="align_bad:Bad")
    result = site.align("run", "--method", "bad")
    assert result.returncode == 2
    error = result.stderr.partition("\n")[2]
    assert error == 'Error: method "bad" (align-bad 1.2.3) cannot be loaded from align_bad:Bad: SystemExit: 0\n'
    traced = site.align("run", "--method", "bad", "--debug")
    assert traced.returncode == 2
    assert "Traceback (most recent call last)" in traced.stderr
    assert traced.stderr.endswith(error)


# ------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (AlignError("a.yaml:3: no"), 2, "Error: a.yaml:3: no\n"),
        (RunFailedError("the loss is nan at step 3"), 1, "Error: the loss is nan at step 3\n"),
        (InterruptedRun("stopped", 15), 143, "Interrupted: stopped\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (SystemExit(4), 4, ""),
        (SystemExit("text"), 1, ""),
        (
            ValueError("two\n  lines"),
            1,
            "Error: ValueError: two lines (run again with --debug for the traceback)\n",
        ),
        (ValueError(), 1, "Error: ValueError (run again with --debug for the traceback)\n"),
        (
            MemoryError(),
            1,
            "Error: out of memory: lower train.tokens_per_micro_batch or data.max_length, or set train.gradient_checkpointing\n",
        ),
    ],
)
def test_exit_codes(error, code, message, capsys):
    assert explain(error, State()) == code
    assert capsys.readouterr().err == message


def test_an_exception_says_which_plugin_it_came_from(capsys):
    error = ZeroDivisionError("division by zero")
    error.add_note('in align_log of service "tap" (align-tap 1.2.3)')
    assert explain(error, State(debug=True)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == 'Error: ZeroDivisionError: division by zero (in align_log of service "tap" (align-tap 1.2.3))'


def test_debug_works_before_and_after_the_command(capsys):
    for arguments in (["--debug", "run"], ["run", "--debug"]):
        assert run_command(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback():
    result = subprocess.run(
        f"{ALIGN} methods --json | head -c 1", shell=True, capture_output=True, text=True, timeout=900
    )
    assert (result.stdout, result.stderr) == ("[", "")


@pytest.mark.parametrize(
    "module",
    [
        *("config", "errors", "contract.hooks", "contract.registry", "contract.batch", "contract.types"),
        *("settings", "system.quiet", "training.session"),
    ],
)
def test_light_modules_load_neither_torch_nor_transformers(module):
    result = python(f"import sys, alignkit.{module}; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert result.stdout.split() == ["False", "False"]
