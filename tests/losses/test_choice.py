"""Losses by name in the settings of dpo and cpo, from the command line to the record of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit import settings
from alignkit.contract import registry
from alignkit.errors import AlignError
from alignkit.training.session import Session

from tests.helpers.engine import build_trainer, configuration, random_pairs
from tests.helpers.runs import align
from tests.helpers.third_party import Site, site

__all__ = ["site"]
FIVE_LINES = """
import torch.nn.functional as F
from alignkit import loss
@loss(paper="A loss for tests", needs={"reference"})
def mine(pairs, *, beta: float = 0.1, push: float = 0.0):
    return -F.logsigmoid(beta * pairs.margins - push)
"""
SHORT = "train.max_steps=2 train.optim=sgd eval.suites=[] eval.samples=0 run.plots=false data.limit=40 data.eval_limit=8".split()


def method(name: str, *sets: str) -> Any:
    return Session.open(settings.resolve(method=name, model="m", data="d", sets=sets).config).method


@pytest.mark.parametrize(
    ("name", "sets", "message"),
    [
        ("cpo", ["loss=kto"], "--set loss=kto: method.loss: loss kto needs a reference: use --method dpo"),
        ("cpo", ["loss={simpo: 1, bco: 1}"], "loss bco needs a reference: use --method dpo"),
        ("dpo", ["loss=sigmoyd"], 'unknown loss "sigmoyd", did you mean "sigmoid"? (align losses lists them)'),
        ("dpo", ["loss={sigmoyd: 1}"], 'unknown loss "sigmoyd", did you mean "sigmoid"?'),
        ("dpo", ["loss=sigmoid_norm"], "method.loss: loss sigmoid_norm is sigmoid with ratio: mean here"),
        ("dpo", ["loss=sigmoyd", "tau=1"], 'method.loss: unknown loss "sigmoyd"'),
        ("dpo", ["loss=ipo", "label_smoothing=0.1"], "unknown key method.label_smoothing (the method's settings are loss, alpha, reference_update_every, reference_mix, beta, ratio)"),
        ("dpo", ["loss={sigmoid: {weight: 1, betta: 2}}"], 'unknown key method.loss.sigmoid.betta, did you mean "beta"?'),
        ("dpo", ["loss={sigmoid: {beta: 1}}", "beta=2"], "unknown key method.beta"),
        ("dpo", ["loss={sigmoid: heavy}"], 'method.loss.sigmoid must be a number, not "heavy"'),
        ("dpo", ["loss={sigmoid: -1}"], "method.loss.sigmoid must be at least 0, not -1"),
        ("dpo", ["loss={sigmoid: {beta: -1}}"], "method.loss.sigmoid.beta must be more than 0, not -1"),
        ("dpo", ["loss={sigmoid: 0}"], "the weights of all losses are 0"),
        ("dpo", ["loss={}"], "must be the name of a loss, or a mapping"),
        ("dpo", ["loss=[sigmoid, nll]"], "must be the name of a loss, or a mapping"),
        ("dpo", ["loss={sigmoid: 1, nll: 1}", "alpha=1"], "method.alpha: it is the weight of the loss nll"),
        ("dpo", ["loss=dpop", "penalty=-1"], "method.penalty must be at least 0, not -1"),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_refused(name: str, sets: list[str], message: str) -> None:
    with pytest.raises(AlignError) as refused:
        method(name, *sets)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("dpo", ["loss=ipo", "label_smoothing=0"]),
        ("dpo", ["loss=hinge", "label_smoothing=0.0", "penalty=0", "tail=1", "shift=none"]),
        ("dpo", ["loss={ipo: {weight: 1, label_smoothing: 0}, hinge: 1}", "gamma=0"]),
        ("cpo", ["loss=simpo", "label_smoothing=0", "desirable_weight=1"]),
        ("online-dpo", ["loss=hinge", "label_smoothing=0", "reward=length"]),
    ],
)
def test_a_setting_at_its_neutral_value_never_contradicts(name: str, sets: list[str]) -> None:
    """It is left out of the record, and the run is the one without it."""
    kept = [text for text in sets if text.startswith(("loss", "reward"))]
    kept = [text.replace("{weight: 1, label_smoothing: 0}", "{weight: 1}") for text in kept]
    given = settings.resolve(method=name, model="m", data="d", sets=sets).config
    assert Session.open(given).method.conventions() == method(name, *kept).conventions()
    assert "label_smoothing" not in settings.dump(given)


@pytest.mark.parametrize("given", ["label_smoothing=0.1", "label_smoothing=false", "label_smothing=0", "beta_2=0"])
def test_another_value_does(given: str) -> None:
    with pytest.raises(AlignError, match="unknown key method"):
        method("dpo", "loss=ipo", given)


def test_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mixed.yaml"
    file.write_text("method:\n  name: cpo\n  loss:\n    simpo: 1\n    sigmoid: {weight: 1, beta: 2}\n")
    with pytest.raises(AlignError, match=r"mixed\.yaml:3: method\.loss: loss sigmoid needs a reference"):
        settings.resolve(file)
    file.write_text("method:\n  name: dpo\n  loss:\n    simpo: 1\n    sigmoid: {weight: 1, gamma: 2}\n")
    with pytest.raises(AlignError, match=r"mixed\.yaml:5: unknown key method\.loss\.sigmoid\.gamma"):
        settings.resolve(file)


def test_a_setting_goes_to_every_loss_that_has_it() -> None:
    """But for those that set it themselves; where defaults differ, each loss keeps its own."""
    losses = "loss={sigmoid: 0.8, bco: {weight: 0.2, beta: 0.5}, ipo: 1, nll: 1}"
    terms = {term.name: (term.weight, term.settings) for term in method("dpo", losses, "beta=0.3").terms}
    assert terms["sigmoid"] == (0.8, {"beta": 0.3, "label_smoothing": 0.0, "ratio": "sum"})
    assert terms["bco"] == (0.2, {"beta": 0.5, "shift": "running"})
    assert terms["ipo"] == (1.0, {"beta": 0.3, "ratio": "mean"})
    assert terms["nll"] == (1.0, {})
    both = {term.name: term.settings["beta"] for term in method("dpo", "loss={sigmoid: 1, nca_pair: 1}").terms}
    assert both == {"sigmoid": 0.1, "nca_pair": 0.01}


@pytest.mark.parametrize(
    ("name", "choice", "alpha"),
    [("dpo", "sigmoid", 0.0), ("cpo", "cpo", 1.0), ("cpo", "odds_ratio", 1.0), ("cpo", "simpo", 0.0)],
)
def test_the_nll_of_a_paper_is_the_default(name: str, choice: str, alpha: float) -> None:
    made = method(name, f"loss={choice}")
    assert [term.weight for term in made.terms] == [1.0, alpha][: 1 + bool(alpha)]
    assert [term.weight for term in method(name, f"loss={choice}", "alpha=0").terms] == [1.0]


@pytest.mark.parametrize("name", [entry.name for entry in registry.entries("align.losses")])
def test_settings_of_every_loss_survive_run_yaml(name: str, tmp_path: Path) -> None:
    for choice in (name, {"nca_pair": 0.5} | {name: {"weight": 0.5}}):
        config = settings.resolve(method="dpo", model="m", data="d", sets=[f"loss={json.dumps(choice)}"]).config
        file = tmp_path / "run.yaml"
        file.write_text(settings.dump(config))
        again = settings.resolve(file, resume=True).config
        assert again == config
        assert Session.open(again).method.conventions() == Session.open(config).method.conventions()


def test_the_schema_has_the_settings_of_every_loss(tmp_path: Path) -> None:
    known = json.loads(align("schema", "cpo", cwd=tmp_path).stdout)["$defs"]["MethodConfig"]["properties"]
    assert {"loss", "alpha", "beta", "gamma", "shape", "delta", "lambda"} <= known.keys()
    assert all(about["description"] for about in known.values() if "const" not in about)
    assert "sigmoid" not in json.dumps(known["loss"]["anyOf"])


def test_the_listing_names_papers(tmp_path: Path) -> None:
    listed = {record["name"]: record for record in json.loads(align("losses", "--json", cwd=tmp_path).stdout)}
    assert listed["simpo"]["needs"] == []
    assert listed["bco"]["needs"] == ["reference"]
    assert all(record["paper"] and record["summary"] for record in listed.values())
    assert "arxiv.org/abs/2405.14734, eq. 6" in align("losses", cwd=tmp_path).stdout


def test_five_lines_make_a_loss(site: Site) -> None:
    """Of an installed package: listed, trained with, mixed with others, and recorded."""
    site.install("align-mine", FIVE_LINES, group="losses", mine="align_mine:mine")
    assert "A loss for tests" in site.align("losses").stdout
    sets = [
        *SHORT,
        "loss={mine: 0.5, sigmoid: 0.5}",
        "push=0.5",
        "beta=0.2",
        f"run.output={site.path}",
        "run.name=mine",
    ]
    done = site.align("run", "--method", "dpo", *(word for text in sets for word in ("--set", text)))
    assert done.returncode == 0, done.stderr
    losses = json.loads((site.path / "mine" / "run.json").read_text())["conventions"]["losses"]
    assert losses["mine"] == {"weight": 0.5, "beta": 0.2, "push": 0.5, "paper": "A loss for tests", "equation": ""}
    assert losses["sigmoid"]["beta"] == 0.2
    first = json.loads((site.path / "mine" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss/mine"] > first["loss/sigmoid"]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            "pairs.margins.mean()",
            "loss mine must return one number per pair, a tensor of shape [3], not a tensor of shape []",
        ),
        ("0.0", "loss mine must return one number per pair, a tensor of shape [3], not float"),
        ("pairs.margin", "loss mine failed: AttributeError: 'Pairs' object has no attribute 'margin'"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_a_broken_loss_is_named(site: Site, tmp_path: Path, result: str, message: str, whole: bool) -> None:
    code = FIVE_LINES.replace("-F.logsigmoid(beta * pairs.margins - push)", result)
    code = code.replace('{"reference"}', '{"reference"}, whole_step=%s' % whole)  # noqa: UP031
    site.install("align-mine", code, group="losses", mine="align_mine:mine")
    config = configuration({"name": "dpo", "loss": "mine"}, per_device_train_batch_size=3)
    trainer, _ = build_trainer(config, tmp_path, random_pairs(3))
    with pytest.raises(AlignError) as refused:
        trainer.training_step(trainer.model, {})
    assert message in str(refused.value)
