"""The kl suite: agreement with a dense computation, limits, and errors."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from alignkit import Example, Policy, Target
from alignkit.demo import model_path
from alignkit.errors import ConfigError, NoRowsError, RunFailedError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.suites.kl import KLSettings, KLSuite, kl_of
from transformers import AutoModelForCausalLM

from tests.helpers.eval import ReferencePolicy, random_pairs, target, tiny_model
from tests.helpers.runs import short_run


def dense(model: torch.nn.Module, other: torch.nn.Module, example: Example) -> float:
    """One unpadded sequence at a time, every distribution in double precision."""
    prompt, completion = list(example.prompt), list(example.completions[0])
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        p = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        q = other(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


def with_start(policy: Policy, start: torch.nn.Module, examples: list[Example]) -> Target:
    from dataclasses import replace

    return replace(target(policy, examples), start_policy=lambda: ReferencePolicy(start))


@pytest.mark.parametrize("tokens_per_batch", [1, 90, 100_000])
def test_it_equals_the_dense_computation(tokens_per_batch: int) -> None:
    model, other = tiny_model(0), tiny_model(1)
    examples = [e.narrow(0) for e in random_pairs(9)]
    found = kl_of(model, other, examples, tokens_per_batch)
    assert found == pytest.approx([dense(model, other, e) for e in examples], rel=1e-5)
    assert min(found) > 0


def test_masked_tokens_do_not_count() -> None:
    model, other = tiny_model(0), tiny_model(1)
    whole = Example("a", [256, 1], ([2, 3, 4],))
    first, rest = ([True, False, False],), ([False, True, True],)
    parts = [Example("a", whole.prompt, whole.completions, masks=mask) for mask in (first, rest)]
    both = kl_of(model, other, parts, 100)
    assert sum(both) == pytest.approx(kl_of(model, other, [whole], 100)[0], rel=1e-6)


def test_metrics_are_ratios_of_sums() -> None:
    examples = random_pairs(20)
    where = with_start(ReferencePolicy(tiny_model(0)), tiny_model(1), examples)
    result = KLSuite(KLSettings()).evaluate(where)
    total, tokens = sum(i["kl"] for i in result.items), sum(i["tokens"] for i in result.items)
    assert result.metrics["kl"].value == pytest.approx(total / tokens)
    assert result.metrics["kl_sequence"].value == pytest.approx(total / 20)
    assert tokens == sum(len(e.completions[0]) for e in examples)


def test_a_model_has_not_moved_from_itself() -> None:
    model = tiny_model()
    where = with_start(ReferencePolicy(model), copy.deepcopy(model), random_pairs(6))
    assert {item["kl"] for item in KLSuite(KLSettings()).evaluate(where).items} == {0.0}


def test_what_cannot_be_measured() -> None:
    with pytest.raises(NoRowsError, match="has no start model"):
        KLSuite(KLSettings()).evaluate(target(ReferencePolicy(tiny_model()), random_pairs(3)))
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight[3] = math.nan
    with pytest.raises(RunFailedError, match="not finite on 3 rows"):
        KLSuite(KLSettings()).evaluate(with_start(ReferencePolicy(broken), tiny_model(1), random_pairs(3)))


def test_of_a_run_and_of_an_adapter(tmp_path: Path) -> None:
    """Through `align run`: before training it is 0; an adapter's start model is its base."""
    eval_ = {"suites": ["kl"], "samples": 0}
    done = short_run(tmp_path, "lora", "orpo", model={"lora": {"r": 4}}, train={"learning_rate": 1e-2}, eval=eval_)
    assert done.evaluation["before"]["kl"]["kl"]["value"] == 0.0
    moved = done.evaluation["after"]["kl"]["kl"]["value"]
    assert moved > 0
    (again,) = evaluate([done.directory], ["kl"])
    assert again.results["kl"].metrics["kl"].value == pytest.approx(moved, rel=1e-6)
    (named,) = evaluate([done.directory], ["kl"], sets=["eval.settings.kl.against=demo"])
    assert named.results["kl"].metrics["kl"].value == pytest.approx(moved, rel=1e-6)


def test_references_of_one_name_and_other_weights_are_not_compared(tmp_path: Path) -> None:
    """The reference may be trained again under its name between two evaluations; its type does not count."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"is {n} red ?", "completion": " no ."}) + "\n" for n in "abc"))
    reference = tmp_path / "reference"
    shutil.copytree(model_path(), reference)
    sets = [f"eval.settings.kl.against={reference}"]
    for name, dtype in (("a", "float32"), ("same", "bfloat16")):
        evaluate(["demo"], ["kl"], data=str(rows), sets=[*sets, f"model.dtype={dtype}"], output=tmp_path / name)
    assert "kl" in {c.metric for c in compare([tmp_path / "a/demo", tmp_path / "same/demo"]).contrasts}
    model = AutoModelForCausalLM.from_pretrained(reference)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(reference)
    evaluate(["demo"], ["kl"], data=str(rows), sets=sets, output=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"suite kl is left out: .*different settings \(against_weights\)"):
        compare([tmp_path / "a/demo", tmp_path / "other/demo"])
