"""Sweeps: their cells, failures, kills and resumption, and their results."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.errors import AlignError, ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.system.manifest import unsealed
from alignkit_eval.sweeps.grid import SweepSpec, cells, parse_over
from alignkit_eval.sweeps.sweep import Sweep, failure, resume, sweep

from tests.helpers.forked import At
from tests.helpers.runs import align, saved_weights

QUICK = [
    *("train.max_steps=4", "train.logging_steps=2", "train.save_strategy=no", "data.eval_limit=60"),
    *("train.per_device_train_batch_size=4", "data.limit=120"),
    *("eval.settings.perplexity.text=null", "run.plots=false"),
]


LAMBDA = ["--method", "orpo", "--over", "lambda=0,1", "--set"]


def status(directory: Path) -> dict[str, str]:
    return {cell["name"]: cell["status"] for cell in json.loads((directory / "sweep.json").read_text())["cells"]}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    output = tmp_path_factory.mktemp("sweeps")
    return sweep({"method": ["orpo", "dpo"], "lambda": [0, 5]}, seeds=[0, 1], sets=QUICK, output=output, name="grid")


# ------------------------------------------------------------------------------------------------- the grid


def names(over: list[str], **about: Any) -> list[str]:
    made, _ = cells(SweepSpec(over=parse_over(over), **about), Path("runs/s"))
    return [cell.name for cell in made]


def test_every_combination_and_seed_is_a_cell() -> None:
    assert names(["lambda=0,0.1", "train.learning_rate=1e-4"], method="orpo", seeds=[0, 2]) == [
        "lambda=0-train.learning_rate=1e-4-seed=0",
        "lambda=0-train.learning_rate=1e-4-seed=2",
        "lambda=0.1-train.learning_rate=1e-4-seed=0",
        "lambda=0.1-train.learning_rate=1e-4-seed=2",
    ]


def test_a_setting_the_method_does_not_have_is_left_out_and_said() -> None:
    made, notes = cells(
        SweepSpec(over=parse_over(["method=sft,orpo,dpo", "lambda=0,1", "beta=0.1,0.5"])), Path("runs/s")
    )
    assert [cell.name for cell in made] == [
        "sft-seed=0",
        *("orpo-lambda=0-seed=0", "orpo-lambda=1-seed=0"),
        *("dpo-beta=0.1-seed=0", "dpo-beta=0.5-seed=0"),
    ]
    assert "dpo has no setting lambda: it is trained once for all its values" in notes
    assert made[1].config.method.settings["lambda"] == 0
    assert made[-1].config.method.settings["beta"] == 0.5


def test_a_setting_the_loss_does_not_have_is_left_out_and_said() -> None:
    over = parse_over(["loss=cpo,simpo,{simpo: 1, nll: 0.1}", "gamma=0.5,1"])
    made, notes = cells(SweepSpec(over=over, method="cpo"), Path("runs/s"))
    losses = [(str(cell.config.method.settings["loss"]), cell.settings.get("gamma")) for cell in made]
    mixed = "{'simpo': 1.0, 'nll': 0.1}"
    assert losses == [("cpo", None), ("simpo", 0.5), ("simpo", 1), (mixed, 0.5), (mixed, 1)]
    assert notes == ["loss cpo has no setting gamma: it is trained once for all its values"]
    with pytest.raises(ConfigError, match=r"--over tau=1: unknown key method\.tau"):
        cells(SweepSpec(over=parse_over(["loss=cpo,simpo", "tau=1,2"]), method="cpo"), Path("runs/s"))


def test_files_are_laid_over_the_base(tmp_path: Path) -> None:
    base, slow = tmp_path / "base.yaml", tmp_path / "slow.yaml"
    base.write_text("method: {name: orpo, lambda: 0.3}\ntrain: {learning_rate: 1e-3, max_steps: 7}\n")
    slow.write_text("train: {learning_rate: 1e-5}\n")
    made, _ = cells(SweepSpec(over={"config": [str(base), str(slow)]}, file=str(base)), tmp_path)
    assert [cell.name for cell in made] == ["base-seed=0", "slow-seed=0"]
    assert [cell.config.train.arguments["learning_rate"] for cell in made] == [1e-3, 1e-5]
    assert {cell.config.train.arguments["max_steps"] for cell in made} == {7}
    assert {cell.config.method.settings["lambda"] for cell in made} == {0.3}


@pytest.mark.parametrize(
    ("over", "about", "expected"),
    [
        (["lambda"], {}, "write key=v1,v2"),
        (["lambda=0,,1"], {}, "write key=v1,v2"),
        (["lambda=0", "lambda=1"], {}, "already swept by another --over"),
        (["lambda=0,0"], {}, "a value is repeated"),
        (["lambda=0.1,0.10"], {}, "--over lambda=0.10: a value is repeated .0.1 and 0.10 are"),
        (["lambda=0,1", "method.lambda=2,3"], {}, "method.lambda and lambda are the same setting"),
        (["run.seed=1,2"], {}, "--over run.seed=1,2: --seeds has the seeds"),
        (["lambda=0,1"], {"sets": ["run.output=x"]}, "--set run.output=x: the runs of a sweep are in its directory"),
        (["lambda=0,1"], {"sets": ["method.lambda=3"]}, "--set method.lambda=3: --over lambda sets it too"),
        (["model.name=demo,other"], {"model": "demo"}, "--over model.name=other: --model sets model.name too"),
        (["method=dpo,sft"], {}, "--method orpo: --over method sets it too"),
        (["lamda=0,1"], {}, 'did you mean "lambda"'),
        (["lambda=0,high"], {}, "lambda"),
        (["train.learning_rat=1"], {}, 'did you mean "train.learning_rate"|learning_rate'),
        (["lambda=0"], {"seeds": []}, "--seeds is empty"),
        (["lambda=0"], {"seeds": [1, 1]}, "repeats a seed"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_trained(
    over: list[str], about: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        cells(SweepSpec(over=parse_over(over), method="orpo", **about), tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- the outcome


def test_the_manifest_has_every_cell_and_the_comparison(done: Sweep) -> None:
    stored = json.loads((done.directory / "sweep.json").read_text())
    assert [cell["name"] for cell in stored["cells"]] == [
        *("orpo-lambda=0-seed=0", "orpo-lambda=0-seed=1", "orpo-lambda=5-seed=0", "orpo-lambda=5-seed=1"),
        *("dpo-seed=0", "dpo-seed=1"),
    ]
    first = stored["cells"][0]
    assert first.keys() >= {"name", "settings", "seed", "status", "run"}
    assert (first["settings"], first["seed"], first["status"]) == ({"method": "orpo", "lambda": 0}, 0, "finished")
    assert first["timings"]["train"]["seconds"] > 0
    assert stored["comparison"]["baseline"] == "orpo lambda=0.0"
    assert {(c["arm"], c["metric"]) for c in stored["comparison"]["contrasts"]} >= {
        ("dpo", "accuracy_sum"),
        ("orpo lambda=5.0", "perplexity"),
    }
    assert all(c["seeds"] == [0, 1] for c in stored["comparison"]["contrasts"])
    assert failure(done) is None


def test_a_sweep_stands_for_its_runs_in_a_comparison(done: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(done.directory), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    stored = json.loads((done.directory / "sweep.json").read_text())["comparison"]
    assert found["baseline"] == stored["baseline"]
    key = ("arm", "suite", "metric", "diff", "low", "high")
    assert [[c[k] for k in key] for c in found["contrasts"]] == [[c[k] for k in key] for c in stored["contrasts"]]


def test_the_plots_are_there(done: Sweep) -> None:
    drawn = {path.name for path in (done.directory / "plots").iterdir()}
    assert drawn >= {
        f"{name}.{kind}" for name in ("accuracy_sum", "perplexity", "logps", "frontier") for kind in ("png", "svg")
    }
    assert all(path.stat().st_size > 5_000 for path in (done.directory / "plots").iterdir())


def test_the_start_model_is_evaluated_once(done: Sweep) -> None:
    before = [json.loads((done.directory / c.name / "eval/before/prefs.json").read_text()) for c in done.cells]
    assert len({json.dumps(stored["metrics"]) for stored in before}) == 1
    assert [stored["provenance"]["cached"] for stored in before].count(False) <= 1


def test_what_is_finished_is_kept(done: Sweep) -> None:
    stamps = {c.name: (done.directory / c.name / "run.json").stat().st_mtime_ns for c in done.cells}
    messages: list[str] = []
    again = resume(done.directory, say=messages.append)
    assert "6 of 6 cells are already finished" in messages
    assert {c.name: (done.directory / c.name / "run.json").stat().st_mtime_ns for c in again.cells} == stamps
    assert again.comparison is not None
    with pytest.raises(ConfigError, match="has a sweep with a different over"):
        sweep({"lambda": [1]}, method="orpo", output=done.directory.parent, name=done.directory.name)


def test_a_failed_cell_does_not_stop_the_others(tmp_path: Path) -> None:
    rates = {"train.learning_rate": [1e-4, 1e12]}
    broken = sweep(rates, method="orpo", sets=QUICK, output=tmp_path, name="broken")
    assert status(broken.directory) == {
        "train.learning_rate=0.0001-seed=0": "finished",
        f"train.learning_rate={1e12}-seed=0": "failed",
    }
    error = failure(broken)
    assert error is not None
    assert "1 of 2 cells failed" in str(error)
    assert "not finite" in str(error) or "non-finite" in str(error)
    assert any("not compared" in note for note in broken.notes)


def test_side_by_side_gives_the_same_weights(done: Sweep, tmp_path: Path) -> None:
    beside = sweep({"lambda": [0, 5]}, method="orpo", sets=QUICK, output=tmp_path, name="jobs", jobs=2)
    assert set(status(beside.directory).values()) == {"finished"}
    for name in ("lambda=0-seed=0", "lambda=5-seed=0"):
        assert saved_weights(beside.directory / name) == saved_weights(done.directory / f"orpo-{name}")


# ------------------------------------------------------------------------------------------------- the command


def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    """SIGTERM in the first cell, SIGKILL in the second, then resume to the end."""
    options = ["sweep", "--method", "orpo", "--over", "lambda=0,1", "--name", "cut"]
    steps = "train.max_steps=24 train.logging_steps=1 train.save_strategy=steps train.save_steps=4"
    for setting in (*QUICK[2:], *steps.split()):
        options += ["--set", setting]
    compared = "compare.objective=prefs/accuracy_sum compare.guards=bits_per_byte compare.margins.accuracy_sum=0.5"
    for setting in ("eval.before=false", *compared.split()):
        options += ["--set", setting]
    directory = tmp_path / "runs/cut"

    def stop(run: str, how: signal.Signals, *arguments: str) -> int:
        at = At(f"open runs/cut/{run}/metrics.jsonl", 4, how)
        return align(*arguments, cwd=tmp_path, at=at).returncode

    assert stop("lambda=0-seed=0", signal.SIGTERM, *options) == 143
    assert status(directory) == {"lambda=0-seed=0": "interrupted", "lambda=1-seed=0": "pending"}
    assert stop("lambda=1-seed=0", signal.SIGKILL, *options) == -signal.SIGKILL
    assert status(directory) == {"lambda=0-seed=0": "finished", "lambda=1-seed=0": "running"}
    ended = align("sweep", "--resume", directory, "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    stored = json.loads(ended.stdout)
    assert {cell["status"] for cell in stored["cells"]} == {"finished"}
    rules = stored["comparison"]["rules"]
    assert (rules["objective"], rules["guards"]) == (["accuracy_sum"], ["bits_per_byte"])
    assert rules["margins"]["accuracy_sum"] == 0.5
    assert {pair["metric"] for pair in stored["comparison"]["pairs"]} == {"accuracy_sum"}
    assert "Of orpo lambda=1.0, bits per byte is " in stored["comparison"]["verdict"]
    records = [json.loads(line) for line in (directory / "lambda=1-seed=0/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == sorted({r["step"] for r in records if "loss" in r})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "orpo"], "nothing to sweep"),
        (["nope.yaml"], "nope.yaml: no such file"),
        (
            [*LAMBDA, "compare.objective=kl"],
            "compare.objective: the cells do not measure kl: name a metric of eval.suites",
        ),
        (
            [*LAMBDA, "compare.guards=perplexty"],
            'compare.guards: no suite has a metric perplexty, did you mean "perplexity"',
        ),
        (["--resume", "x", "--set", "lambda=3"], "--set has no effect with --resume"),
        (["--method", "orpo", "--over", "lambda=0", "--seeds", "a"], "write whole numbers"),
        (["--resume", "--name", "none"], "is not a sweep directory"),
        (["--over", "lambda=0"], "no method given"),
        (["--method", "orpo", "--over", "lambda=-1,0"], "lambda"),
        (["--method", "orpo", "--over", "lambda=0", "--name", "../out"], "points outside"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


# --------------------------------------------------------------------------- what was trained with something else


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"data": "nope.jsonl"}, "nope.jsonl"),
        ({"model": "./nope"}, "no model or run at ./nope"),
        ({"over": {"model.name": ["demo", "./nope"]}, "method": "orpo"}, "no model or run at ./nope"),
        ({"over": {"data.source": ["demo", "rows.jsonl"]}, "method": "orpo"}, "rows.jsonl"),
    ],
    ids=str,
)
def test_data_and_models_are_refused_before_the_first_cell(
    given: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(AlignError, match=says):
        sweep(**({"over": {"method": ["orpo", "dpo"]}, "sets": QUICK} | given))
    assert [place.name for place in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_run_of_other_settings_or_code_is_trained_anew_and_kept_apart(done: Sweep) -> None:
    """As if the default of dpo's beta, and the code of orpo, had changed since the sweep was carried out."""
    stamps = {c.name: (done.directory / c.name / "run.json").stat().st_mtime_ns for c in done.cells}
    config = RunDir(done.directory / "dpo-seed=0").read_record()["config"]
    config["method"]["beta"] = 0.3
    RunDir(done.directory / "dpo-seed=0").update_record(config=config)
    stored = unsealed(json.loads((done.directory / "sweep.json").read_text()), done.directory)
    (one,) = (cell for cell in stored["cells"] if cell["name"] == "orpo-lambda=5-seed=1")
    assert all(cell["code"] for cell in stored["cells"])
    one["code"] = "of another time"
    (done.directory / "sweep.json").write_text(json.dumps(stored))
    said: list[str] = []
    again = resume(done.directory, say=said.append)
    kept = {name for name, stamp in stamps.items() if (done.directory / name / "run.json").stat().st_mtime_ns == stamp}
    assert stamps.keys() - kept == {"dpo-seed=0", "orpo-lambda=5-seed=1"}
    assert {place.name for place in (done.directory / "earlier").iterdir()} == stamps.keys() - kept
    assert any("anew: dpo-seed=0, because since then method.beta was 0.3 and is 0.1 now" in line for line in said), said
    assert any("anew: orpo-lambda=5-seed=1, because since then the code of orpo" in line for line in said), said
    assert RunDir(done.directory / "dpo-seed=0").read_record()["config"]["method"]["beta"] == 0.1
    assert {cell.status for cell in again.cells} == {"finished"}
    said.clear()
    resume(done.directory, say=said.append)
    assert not any("anew" in line for line in said), said
