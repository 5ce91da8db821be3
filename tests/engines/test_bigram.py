"""An engine from outside: a toy in NumPy passes the conformance kit, and trains, resumes and is evaluated through ``align``."""

from itertools import chain
from pathlib import Path

import pytest
from alignkit import build_model
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError
from alignkit.runs.api import resume as alignkit_resume
from alignkit.testing import EngineConformance, tiny
from alignkit.testing.engine import build_trainer, configuration
from alignkit.testing.tiny import tiny_llama
from alignkit_cluster.launcher import start
from alignkit_eval.evaluation.evaluate import evaluate

from tests.engines.bigram import BigramEngine
from tests.helpers.runs import align, short_run
from tests.helpers.third_party import Site

SOURCE = (Path(__file__).parent / "bigram.py").read_text()


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The toy as an installed distribution."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("site")
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        patch.delenv("ALIGN_PLUGINS", raising=False)
        site = Site(folder)
        site.install("align-bigram", SOURCE, group="engines", bigram="align_bigram:BigramEngine")
        yield site


class TestBigram(EngineConformance):
    name = "bigram"

    def torch_model(self):
        return tiny_llama(num_hidden_layers=0)


def test_it_is_short():
    assert len(SOURCE.splitlines()) < 150


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo's tokenizer with a Llama without layers."""
    directory, tokenizer = tmp_path_factory.mktemp("zero"), build_model(ModelConfig()).tokenizer
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 512}
    tiny_llama(num_hidden_layers=0, **size, **special).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The same run by torch and by the toy, and one that was paused."""
    output = tmp_path_factory.mktemp("runs")

    def train(name, **run):
        precise = {"dtype": "float32"} if name == "torch" else {}
        train = {"max_steps": 6, "logging_steps": 1, "learning_rate": 1e-2, "bf16": False}
        made = {"name": str(model)} | precise
        suites = {"suites": ["prefs", "perplexity", "kl"]}
        return short_run(output, name, train=train, model=made, eval=suites, data={"source": "demo"}, run=run)

    found = {"torch": train("torch"), "bigram": train("bigram", engine="bigram")}
    paused = train("paused", engine="bigram", pause_at=[0.5])
    return found | {"paused": alignkit_resume(paused.directory)}


def test_a_run_is_that_of_torch(runs):
    """From the same seed: losses of every step, the start model's hash, and all results but the times."""
    losses = {name: [r["loss"] for r in run.metrics if "loss" in r] for name, run in runs.items()}
    assert losses["bigram"] == pytest.approx(losses["torch"], abs=1e-4)
    ours, torchs = (runs[name].record for name in ("bigram", "torch"))
    assert (ours["engine"], torchs["engine"]) == ("bigram", "torch")
    assert ours["model"]["hash"] == torchs["model"]["hash"]
    for when in ("before", "after"):
        for suite, metrics in torchs["evaluation"][when].items():
            for name, value in metrics.items():
                found = ours["evaluation"][when][suite][name]["value"]
                assert found == pytest.approx(value["value"], rel=2e-3, abs=1e-3), f"{suite}/{name} {when} training"


def test_a_paused_run_ends_with_the_same_bytes(runs):
    whole, paused = ((runs[name].directory / "model/model.safetensors").read_bytes() for name in ("bigram", "paused"))
    assert whole == paused


def test_the_saved_model_is_evaluated_by_either_engine(runs, tmp_path):
    """An evaluation uses the run's engine, or the one that is named, and both give the same."""
    scores = []
    for keys in ([], ["run.engine=torch", "model.dtype=float32"]):
        found = evaluate([str(runs["bigram"].directory)], ["prefs"], sets=keys, output=str(tmp_path))
        scores.append([item["chosen_sum"] for item in found[0].results["prefs"].items])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert scores[0] != scores[1]


def test_runs_of_two_engines_are_compared_with_that_said(runs):
    done = align("compare", *(runs[name].directory for name in ("torch", "bigram")), cwd=runs["torch"].directory)
    assert done.returncode == 0, done.stderr
    assert "run.engine=bigram" in done.stdout
    assert "the arms were trained by different engines: torch, bigram" in done.stdout


def test_processes_are_refused_before_they_start():
    config = configuration("orpo")
    config.run = config.run.model_copy(update={"engine": "bigram", "processes": 2})
    with pytest.raises(ConfigError, match=r"run\.engine bigram trains in one process"):
        start(config, ["run", "--no-such-option"])


def test_the_norm_of_the_gradient_is_computed_once_a_step(tmp_path, monkeypatch):
    """The guard, clipping and the log have the same one."""
    engine, model = BigramEngine(), tiny.tiny_llama(num_hidden_layers=0)
    config = configuration("orpo", max_steps=3, max_grad_norm=1e-3)
    trainer, found = build_trainer(config, tmp_path, tiny.rows("preference", 8), model=model, engine=engine), []
    norm = trainer.engine.gradient_norm
    monkeypatch.setattr(trainer.engine, "gradient_norm", lambda: found.append(norm()) or found[-1])
    before = trainer.engine.weights()
    trainer.train()
    assert found == [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(found) == 3
    moved = sum(float((w - before[k]).square().sum()) for k, w in trainer.engine.weights().items()) ** 0.5
    assert 0 < moved <= 3 * config.train.arguments["learning_rate"] * 1e-3 * 1.01


@pytest.mark.parametrize(
    ("options", "words"),
    {
        "a need": (
            ["--method", "ppo", "--set", "reward=length"],
            "method ppo needs value_head, which engine bigram does",
        ),
        "distributions": (["--method", "dpo", "--set", "loss=tdpo"], "method dpo needs distributions"),
        "a trainer of its own": (["--method", "trl-dpo"], "trl-dpo has a trainer of its own"),
        "a key without effect": (["--set", "model.dtype=bfloat16"], "model.dtype has no effect with run.engine bigram"),
        "an optimizer": (["--set", "train.optim=adafactor"], "run.engine bigram has no optimizer adafactor"),
        "a key of torch": (["--set", "train.torch_compile=true"], "train.torch_compile has no effect with run.engine"),
        "measuring": (["--set", "train.tokens_per_micro_batch=auto"], "cannot measure train.tokens_per_micro_batch"),
        "another model": (["--model", "demo"], "trains Llamas without layers"),
        "no such engine": (["--engine", "bigrams"], 'unknown engine "bigrams", did you mean "bigram"?'),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_cannot_do_is_refused_in_one_sentence(model, installed, tmp_path, options, words):
    given = {"--engine": "bigram", "--method": "orpo", "--model": model, "--data": "demo"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    done = align("run", *chain(*given.items()), cwd=tmp_path, PYTHONPATH=str(installed.path))
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.glob("runs/*"))
