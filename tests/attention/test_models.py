"""Real models score by every kernel as they do by separate forwards; which kernels are tried, and what is recorded."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from alignkit import settings
from alignkit.errors import AlignError, ConfigError, ModelError
from alignkit.models.load import build_classifier
from alignkit.runs.prepare import plan_run
from alignkit.scoring.attention import packed_attention
from alignkit.scoring.backends import install_forward
from alignkit.scoring.classifier import policy_of
from alignkit.scoring.plan import make_plan
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.probe import choose
from alignkit.scoring.scorer import install
from alignkit_attention.cpu import BLOCKS
from alignkit_attention.sdpa import PLAIN_SDPA
from torch import nn

from tests.helpers.attention import CASES, REFERENCE, FlexAnywhere, VarlenAnywhere
from tests.helpers.forked import run_ranks
from tests.helpers.operator_worker import score_without
from tests.helpers.scoring import _SMALL, assert_same_gradients, build, gradients, plain_scores, rows, weigh
from tests.helpers.third_party import Site

CPU = torch.device("cpu")


def llama4(**changes):
    torch.manual_seed(0)
    small = _SMALL | {"intermediate_size_mlp": 64, "head_dim": 8, "num_hidden_layers": 4, "num_local_experts": 2}
    config = hf.Llama4TextConfig(**small, attention_chunk_size=7, moe_layers=[], **changes)
    return hf.AutoModelForCausalLM.from_config(config)


MODELS = {
    "llama": lambda: build("llama"),
    "mistral-window": lambda: build("mistral-window"),
    "qwen2-window": lambda: build("qwen2-window"),
    "gemma3": lambda: build("gemma3"),
    "gemma2": lambda: build("gemma2"),
    "llama4": lambda: llama4(floor_scale=5),
}
KERNELS = {
    "blocks": BLOCKS,
    "varlen": VarlenAnywhere(REFERENCE),
    "flex": FlexAnywhere(None),
    "sdpa": PLAIN_SDPA,
}


def scored_by(model, name, dtype=torch.float32):
    """Return the policy that scores a model with one kernel alone, on the CPU."""
    install_forward(model.to(dtype))
    return ModelPolicy(model, choose(model, ("packed",), CPU, {name: KERNELS[name]}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_models_score_by_kernels_as_by_separate_forwards(name, kernel):
    """Gemma 2 caps its scores, which FlexAttention alone computes; FlexAttention has no backward on the CPU."""
    model, examples = MODELS[name](), rows(3, completions=3, masked=True)
    if name == "gemma2" and kernel != "flex":
        with pytest.raises(ModelError, match=f"{kernel} does not support softcap"):
            scored_by(model, kernel)
        return
    expected, expected_prompt = plain_scores(model, examples)
    (weigh(expected) + weigh(expected_prompt, 2)).backward()
    reference = gradients(model)
    policy = scored_by(model, kernel)
    assert str(policy.scorer) == f"packed ({kernel})"
    scores = policy.score(examples, prompt=True, grad=kernel != "flex")
    torch.testing.assert_close(scores.logps, expected.detach(), atol=3e-5, rtol=2e-5)
    torch.testing.assert_close(scores.prompt_logps, expected_prompt.detach(), atol=3e-5, rtol=2e-5)
    if kernel != "flex":
        (weigh(scores.logps) + weigh(scores.prompt_logps, 2)).backward()
        assert_same_gradients(gradients(model), reference, tol=2e-5)


@pytest.mark.parametrize("kernel", ["blocks", "varlen", "sdpa"])
def test_lora_checkpointing_and_autocast_give_the_gradients_of_separate_forwards(kernel):
    """With all three at once: recomputed in the backward, in low precision, with adapters alone trained."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    examples = rows(3)
    plain_scores(model, examples)[0].mean().backward()
    reference = gradients(model)
    base = model.get_base_model()
    install_forward(base)
    policy = ModelPolicy(model, choose(base, ("packed",), CPU, {kernel: KERNELS[kernel]}))
    model.train()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    policy.score(examples).logps.mean().backward()
    assert_same_gradients(gradients(model), reference)
    with torch.autocast("cpu", torch.bfloat16):
        policy.score(examples).logps.mean().backward()
    assert_same_gradients(gradients(model), reference, tol=0.1)


@pytest.mark.parametrize("kernel", ["varlen", "sdpa"])
def test_models_in_bfloat16_score_by_kernels_as_by_blocks(kernel):
    examples = rows(4, completions=3)
    found = [scored_by(build("gemma3"), name, torch.bfloat16).score(examples).logps for name in ("blocks", kernel)]
    assert float((found[0] - found[1]).detach().abs().mean()) < 0.05


def test_the_first_kernel_that_agrees_is_used_and_recorded():
    assert str(install(build("llama"))) == "packed (blocks)"
    assert str(install(build("llama"), attention="sdpa")) == "packed (sdpa)"
    assert str(install(build("llama"), attention="flash")) == "packed (blocks)"
    assert str(install(build("bloom"))) == "padded"
    scorer = install(build("gemma2"))
    assert scorer.backend == "rows"
    assert scorer.notes == (
        "packed (blocks) scoring was not used: blocks does not support softcap.",
        "packed (sdpa) scoring was not used: sdpa does not support softcap.",
    )


def test_on_a_device_the_kernels_for_it_are_tried(device):
    model = build("llama").to(device)
    scorer = install(model)
    assert scorer.backend == "packed"
    assert {*scorer.kernels} <= {case.name for case in CASES[device]}
    logps, _ = plain_scores(build("llama"), rows(3))
    torch.testing.assert_close(ModelPolicy(model).score(rows(3)).logps.cpu(), logps, atol=1e-4, rtol=1e-4)


class InHalf(type(PLAIN_SDPA)):
    """A kernel that computes in bfloat16 alone, as flash attention does."""

    def refusal(self, layer):
        return None if layer.dtype == torch.bfloat16 else "computes in bfloat16"


def test_a_kernel_for_low_precision_is_used_under_autocast_and_the_next_one_elsewhere(monkeypatch):
    """As on CUDA, where flash attention does not compute in float32 (the device of the choice is a fiction here)."""
    model = build("llama")
    install_forward(model)
    scorer = choose(model, ("packed",), torch.device("cuda"), {"half": InHalf(), "sdpa": PLAIN_SDPA})
    assert str(scorer) == "packed (half, sdpa)"
    assert scorer.notes == (
        "packed (half) scoring was not used: half computes in bfloat16 (it is used under autocast).",
    )
    seen = []
    monkeypatch.setattr(PLAIN_SDPA.__class__, "attend", lambda self, *a: seen.append(type(self).__name__) or a[0])
    policy = ModelPolicy(model, scorer)
    policy.score(rows(1))
    with torch.autocast("cpu", torch.bfloat16):
        policy.score(rows(1))
    assert seen == ["SDPA", "SDPA", "InHalf", "InHalf"]


@pytest.mark.parametrize(
    ("backend", "attention", "scorer"),
    [
        ("auto", "eager", "rows"),
        ("rows", "eager", "rows"),
        ("padded", "eager", "padded"),
        ("padded", "sdpa", "padded"),
        ("packed", "sdpa", "packed (sdpa)"),
        ("auto", "blocks", "packed (blocks)"),
        ("packed", "flash", "packed (blocks)"),
    ],
)
def test_the_named_attention_is_the_one_that_runs(backend, attention, scorer):
    model = build("llama")
    assert str(install(model, backend, attention=attention)) == scorer
    own = "eager" if attention == "eager" else "sdpa"
    assert model.config._attn_implementation == ("alignkit_packed" if "packed" in scorer else own)
    logps = ModelPolicy(model).score(rows(3), grad=False).logps
    torch.testing.assert_close(logps, plain_scores(build("llama"), rows(3))[0].detach(), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "backend", "attention", "error", "message"),
    [
        ("llama", "auto", "flax", AlignError, 'unknown attention "flax", did you mean "flex"'),
        ("llama", "packed", "eager", ConfigError, "model.attention: eager excludes model.scorer: packed"),
        ("llama", "rows", "varlen", ConfigError, "model.attention: varlen excludes model.scorer: rows"),
        ("llama", "auto", "varlen", ModelError, "varlen does not run on cpu"),
        ("gemma2", "auto", "blocks", ModelError, "blocks does not support softcap"),
        ("llama", "padded", "flash", ModelError, "cannot use flash_attention_2"),
        ("gemma2", "auto", "sdpa", ModelError, "Gemma2ForCausalLM cannot use sdpa"),
        ("llama", "auto", "flex", ModelError, "cannot use flex_attention: FlexAttention has no backward on the CPU"),
    ],
)
def test_what_cannot_be_combined_is_refused(name, backend, attention, error, message):
    model = build(name)
    before = model.config._attn_implementation
    with pytest.raises(error, match=message):
        install(model, backend, attention=attention)
    assert model.config._attn_implementation == before


BROKEN = "raise RuntimeError('a kernel that cannot be imported')"


def test_a_broken_kernel_of_a_package_stops_only_the_runs_that_name_it(site: Site):
    site.install("align-broken", BROKEN, group="attention", broken="align_broken:KERNEL")
    assert str(install(build("llama"))) == "packed (blocks)"
    with pytest.raises(AlignError, match="a kernel that cannot be imported"):
        install(build("llama"), attention="broken")


FIRST = """
from alignkit_attention.sdpa import SDPA

class First(SDPA):
    order = 0

KERNEL = First()
"""


def test_a_kernel_of_a_package_is_chosen_by_its_order_or_its_name(site: Site):
    site.install("align-first", FIRST, group="attention", first="align_first:KERNEL")
    site.install("align-last", FIRST.replace("= 0", "= 99"), group="attention", last="align_last:KERNEL")
    assert str(install(build("llama"))) == "packed (first)"
    assert str(install(build("llama"), attention="last")) == "packed (last)"
    site.install("align-no", "KERNEL = 3", group="attention", no="align_no:KERNEL")
    with pytest.raises(AlignError, match=r"is not an alignkit\.AttentionKernel"):
        install(build("llama"), attention="no")


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_forwards_without_a_plan_run_the_models_own_attention(name):
    """Generation and lm-eval: also where the model caps its scores, which SDPA would leave out."""
    ids = torch.tensor([[5, 7, 9, 11, 8], [3, 4, 0, 0, 0]])
    mask = (ids != 0).long()
    expected = build(name)(input_ids=ids, attention_mask=mask).logits
    policy = scored_by(build(name), "flex")
    found = policy.model(input_ids=ids, attention_mask=mask).logits
    for row in (0, 1):
        length = int(mask[row].sum())
        torch.testing.assert_close(found[row, :length], expected[row, :length], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("argument", ["s_aux", "position_bias"])
def test_what_no_kernel_computes_is_refused(argument):
    plan = make_plan(rows(1), kernels={"blocks": BLOCKS})
    states = torch.randn(1, 2, plan.input_ids.shape[1], 8)
    with pytest.raises(NotImplementedError, match=argument):
        packed_attention(nn.Module(), states, states, states, None, alignkit_plan=plan, **{argument: torch.ones(1)})
    with pytest.raises(NotImplementedError, match="dropout"):
        packed_attention(nn.Module(), states, states, states, None, dropout=0.1, alignkit_plan=plan)
    with pytest.raises(ModelError, match="blocks does not support softcap"):
        packed_attention(nn.Module(), states, states, states, None, softcap=3.0, alignkit_plan=plan)


@pytest.mark.parametrize("suffix", ["", "_backward"])
def test_torch_without_cpu_flash_attention_scores_by_another_kernel(suffix, tmp_path):
    """The operators are private to PyTorch: without one of them the scorer must still import and train."""
    operator = f"_scaled_dot_product_flash_attention_for_cpu{suffix}"
    ((said, _),) = run_ranks(1, score_without, operator, cwd=tmp_path)
    scorer, refusal = said.splitlines()
    assert scorer == "packed (sdpa)"
    assert f"blocks needs CPU flash attention, which torch {torch.__version__} has not" in refusal


def test_a_reward_model_has_no_kernel_and_runs_the_implementation_that_is_named():
    sets = ["model.attention=blocks"]
    with pytest.raises(
        ConfigError, match=r"model\.attention: blocks has no effect with reward: a reward model is called"
    ):
        plan_run(settings.resolve(method="reward", sets=sets).config)
    config = settings.resolve(method="reward", sets=["model.attention=eager"]).config
    policy = policy_of(build_classifier(config.model), config, CPU)
    assert policy.model.config._attn_implementation == "eager"


def test_a_copy_of_a_model_runs_the_same_kernels_on_its_own_weights():
    policy = scored_by(build("llama"), "flex")
    policy.score(rows(1), grad=False)  # kernels may keep what cannot be copied, such as compiled functions
    copied = copy.deepcopy(policy.model)
    torch.nn.init.normal_(copied.lm_head.weight)
    scorer = policy.scorer
    assert copy.deepcopy(scorer).kernels["flex"] is scorer.kernels["flex"]
    found = ModelPolicy(copied, scorer).score(rows(2), grad=False).logps
    plain = build("llama")
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(found, plain_scores(plain, rows(2))[0].detach(), atol=2e-5, rtol=1e-5)
