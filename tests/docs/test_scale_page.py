"""The commands of docs/scale.md, run as they stand; those of other machines are planned, not started."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from alignkit import RunConfig
from alignkit.__main__ import main
from alignkit_cluster.strategies import preset
from alignkit_eval.report.memory import ADAM_STATES, _divide
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.runs import align, short_options

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
ELSEWHERE = [command for command in COMMANDS if "--rendezvous" in command]
HERE = [command for command in COMMANDS if command[:2] == ["align", "run"] and command not in ELSEWHERE]
SLURM = [command for command in COMMANDS if "slurm" in command]


@pytest.mark.parametrize("command", [c for c in HERE if "--dry-run" in c] + ELSEWHERE, ids=" ".join)
def test_plans(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orpo.yaml").write_text("method: orpo")
    quick = ["--set", "train.per_device_train_batch_size=1"]  # a step of few rows is traced sooner
    assert main([*command[1:], *quick, *["--dry-run"] * ("--dry-run" not in command)]) == 0
    said = capsys.readouterr().err
    assert ("32 on 4 nodes" in said) == (command in ELSEWHERE)


@pytest.mark.slow
def test_runs_of_one_machine(tmp_path: Path) -> None:
    (run,) = [command for command in HERE if "--dry-run" not in command]
    done = align(*run[1:], *short_options(), "--set", "eval.before=false", "--set", "eval.suites=prefs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs/pair/run.json").read_text())["processes"]["world_size"] == 2
    (status,) = [command for command in COMMANDS if command[:2] == ["align", "status"]]
    assert "2 processes on 1 node" in align(*status[1:], cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_sweep_of_one_machine(tmp_path: Path) -> None:
    (command,) = [command for command in COMMANDS if command[:2] == ["align", "sweep"]]
    quick = ["eval.before=false", "eval.suites=prefs", "eval.samples=0", "run.plots=false", "data.eval_limit=8"]
    done = align(*command[1:], *(word for value in quick for word in ("--set", value)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "runs/grid/sweep.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("scheduler", "missing"), [("ray", "no Ray cluster answers at 127.0.0.1:9"), ("slurm", "sbatch")]
)
def test_sweeps_of_a_cluster_lack_nothing_but_the_cluster(
    scheduler: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = re.findall(rf"^align sweep .*--scheduler {scheduler} .*", PAGE, re.M)
    words = line.replace("/shared", ".").replace("--address auto", "--address 127.0.0.1:9")
    assert main(shlex.split(words)[1:]) == 2
    assert missing in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_batch_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orpo.yaml").write_text("method: orpo")
    ((*command, arrow, file),) = SLURM
    assert arrow == ">"
    assert main(command[1:]) == 0
    (tmp_path / file).write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", file], check=True)
    assert "#SBATCH --time=8:00:00\n" in (tmp_path / file).read_text()
    (line,) = re.findall(r"`align (slurm .* -- .*)`", PAGE)
    assert main(line.split()) == 0
    assert capsys.readouterr().out.endswith("--set train.learning_rate=1e-5\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--set train.lerning_rate=1", 'unknown key train.lerning_rate, did you mean "learning_rate"?'),
        ("--mehtod dpo", "No such option '--mehtod'"),
        ("--processes 2", "--processes does not belong after --: align slurm writes the script"),
    ],
)
def test_a_batch_script_that_would_fail_is_not_printed(
    options: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orpo.yaml").write_text("method: orpo")
    assert main(["slurm", "orpo.yaml", "--gpus", "8", "--", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_the_memory_of_large_models() -> None:
    """16 bytes a parameter: weights, gradients and two moments in float32, divided as the strategy says; ZeRO-2 has a copy."""
    rows = re.findall(r"^\| (\d+) billion \| (.*) \|$", PAGE, re.M)
    assert [size for size, _ in rows] == ["1", "8", "70"]
    for size, cells in rows:
        gib = int(size) * 1e9 / 2**30
        expected = [16 * gib, 4 * gib + 16 * gib / 8, 16 * gib / 8, 16 * gib / 32]
        for cell, value in zip(cells.replace(",", "").split(" | "), expected, strict=True):
            assert float(cell) == pytest.approx(value, abs=0.51)


LLAMAS = {
    "1 billion": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32},
    "8 billion": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32},
    "70 billion": {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64},
}


def test_the_table_of_memory_is_what_a_dry_run_divides() -> None:
    """The parts of models of these sizes, without numbers (on the meta device), per billion of their parameters."""
    table = re.search(r"\| parameters \|.*?\n\n", PAGE, re.DOTALL)
    assert table
    heads, _, *rows = [line.strip("| ").split(" | ") for line in table[0].strip().splitlines()]
    for size, *cells in rows:
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**LLAMAS[size], vocab_size=128_256, num_key_value_heads=8))
        numbers = model.num_parameters()
        for head, cell in zip(heads[1:], cells, strict=True):
            parts = Counter({"weights": 4 * numbers, "gradients": 4 * numbers, "optimizer": ADAM_STATES * numbers})
            config = RunConfig(method="orpo")
            if head[0].isdigit():
                config.run.processes, config.run.strategy = int(head.split()[0]), head.split("`")[1]
                key = "fsdp" if config.run.strategy == "fsdp" else "deepspeed"
                config.train = config.train.model_copy(
                    update={key: True if key == "fsdp" else preset(config.run.strategy)["deepspeed"]}
                )
            dry = SimpleNamespace(loaded=SimpleNamespace(model=model), plan=SimpleNamespace(config=config))
            _divide(cast("Any", dry), parts)
            held = sum(parts[part] for part in ("weights", "gradients", "optimizer"))
            exact = held / numbers * float(size.split()[0]) * 1e9 / 2**30
            assert float(cell.replace(",", "")) == pytest.approx(exact, abs=0.5 if exact > 1 else 0.05)
