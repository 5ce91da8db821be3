"""Ways of scoring agree, adapters with dropout and checkpointing have right gradients, and what is refused."""

import copy

import peft
import pytest
import torch
from alignkit.contract import LoadedModel
from alignkit.errors import ConfigError, ModelError
from alignkit.models.generate import generate
from alignkit.runs.prepare import plan_run
from alignkit.scoring.policy import ModelPolicy
from alignkit.testing import tiny
from alignkit.testing.engine import configuration
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

pytest.importorskip("mlx_lm", reason='pip install "alignkit[mlx]"')
from alignkit_mlx import MLXEngine, model

ROWS = tiny.rows("preference", 6)


def opened(torch_model, *, lora=None, config=None, **train):
    """Return the MLX policy of a model, with a LoRA adapter of options ``lora``."""
    if lora is not None:
        torch.manual_seed(0)
        adapter = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **lora}
        torch_model = peft.get_peft_model(torch_model, peft.LoraConfig(**adapter, task_type="CAUSAL_LM"))
    loaded = LoadedModel(torch_model, tiny.Words(), "tiny", "", is_adapter=lora is not None)
    found = configuration("orpo", **train)
    for name, values in (config or {}).items():
        setattr(found, name, getattr(found, name).model_copy(update=values))
    return MLXEngine().policy(loaded, found, torch.device("cpu"))


def gradients(policy, rows=ROWS):
    policy.engine.clear()
    scores = policy.score(rows, prompt=True, entropy="grad")
    loss = scores.logps.square().sum() + scores.prompt_logps.sum() + scores.entropy.sum()
    loss.backward()
    return loss.item(), policy.engine.trained.to_torch(policy.engine.gradients)


def same(first, second, bound=2e-5):
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    largest = max(float(g.abs().max()) for g in first[1].values())
    assert max(float((first[1][k] - second[1][k]).abs().max()) for k in first[1]) < bound * largest


@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.parametrize("changed", ["rows", "chunks", "whole", "layers"])
def test_every_way_of_scoring_has_the_same_gradients(monkeypatch, lora, changed):
    """Shared prompts and a kept head, against rows, a head in chunks, all logits, and layers that are computed again."""
    train = {"gradient_checkpointing": True} if changed == "layers" else {}
    policies = [opened(tiny.tiny_llama(), lora=lora), opened(tiny.tiny_llama(), lora=lora, **train)]
    assert all(policy.engine.share for policy in policies)
    expected = gradients(policies[0])
    engine = policies[1].engine
    engine.share, engine.split = changed != "rows", changed != "whole"
    if changed == "chunks":
        monkeypatch.setattr(model, "KEPT", 0)
        monkeypatch.setattr(model, "CHUNK", 0)
        monkeypatch.setattr(model, "LEAST", 16)
    same(expected, gradients(policies[1]))


@pytest.mark.parametrize("window", [64, 6])
def test_other_models_share_prompts(window):
    """Gemma 3 (sliding windows of two kinds of rope, four norms, scaled embeddings) scores as torch's does."""
    shape = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window, "query_pre_attn_scalar": 8}
    kinds = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "pad_token_id": 0}
    torch.manual_seed(0)
    stock = Gemma3ForCausalLM(Gemma3TextConfig(**shape, **heads, **kinds, sliding_window_pattern=3)).eval()
    want = ModelPolicy(stock).score(ROWS, prompt=True, grad=False)
    policy = opened(stock)
    got = policy.score(ROWS, prompt=True, grad=False)
    assert torch.allclose(got.logps, want.logps, atol=1e-4)
    assert torch.allclose(got.prompt_logps, want.prompt_logps, atol=1e-4)
    assert policy.engine.scorer == "shared prompts"


def test_a_window_that_mlx_lm_does_not_have_is_refused_where_rows_are_longer():
    """mlx-lm computes a Mistral by its Llama, whose layers all attend to everything."""
    shape = {**tiny.tiny_llama().config.to_dict(), "sliding_window": 100, "model_type": "mistral"}
    stock = MistralForCausalLM(MistralConfig(**{k: v for k, v in shape.items() if k != "architectures"}))
    with pytest.raises(ModelError, match=r"no sliding window, which is 100 tokens here, and rows may have 1,024"):
        opened(copy.deepcopy(stock))
    assert opened(stock, config={"data": {"max_length": 90}}).engine.share


def test_dropout_is_the_same_when_layers_are_computed_again():
    """The gradient along a direction is the difference of the losses on both sides, with the dropout of the same pass."""
    policy = opened(tiny.tiny_llama(), lora={"lora_dropout": 0.5}, gradient_checkpointing=True)
    engine = policy.engine
    assert not engine.share
    start, passes = engine.weights(), engine.passes
    _, gradient = gradients(policy)
    norm = sum(float(g.square().sum()) for g in gradient.values())
    sides = []
    for sign in (1, -1):
        engine.load_weights({k: v + sign * 1e-3 * gradient[k] / norm**0.5 for k, v in start.items()})
        engine.passes = passes
        sides.append(gradients(policy)[0])
    assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(norm**0.5, rel=2e-2)
    engine.load_weights(start)
    assert gradients(policy)[0] != gradients(policy)[0], "every pass has a dropout of its own"


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_base_trains_its_adapter(bits):
    plain, rounded = (
        opened(tiny.tiny_llama(hidden_size=64, intermediate_size=96), lora={}, config={"model": {"quantization": q}})
        for q in (None, bits)
    )
    assert bits in rounded.precision["frozen"]
    off = (rounded.score(ROWS, grad=False).logps - plain.score(ROWS, grad=False).logps).abs().mean()
    assert 0 < float(off) < (0.1 if bits == "4bit" else 0.01)
    assert gradients(rounded)[1].keys() == gradients(plain)[1].keys()


def test_products_in_bfloat16():
    """Weights and their gradients stay float32, and scores are near those of float32."""
    half, plain = opened(tiny.tiny_llama(), bf16=True), opened(tiny.tiny_llama())
    assert half.precision == {"trained": "float32", "products": "bfloat16"}
    assert all(weight.dtype == torch.float32 for weight in half.engine.weights().values())
    off = (half.score(ROWS, grad=False).logps - plain.score(ROWS, grad=False).logps).abs()
    assert 0 < float(off.max()) < 0.1


def test_answers_depend_on_prompt_and_seed_alone():
    policy = opened(tiny.tiny_llama())
    prompts, options = [[5, 6, 7, 8, 9], [10], [11, 12]], {"max_new_tokens": 6, "temperature": 1.0, "seed": [1, 2, 3]}
    together = generate(policy.model, tiny.Words(), prompts, **options)
    alone = [
        generate(policy.model, tiny.Words(), [prompt], **options | {"seed": [seed]})[0]
        for prompt, seed in zip(prompts, (1, 2, 3), strict=True)
    ]
    assert together == alone
    assert policy.engine.caches


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"optim": "adamw_8bit"}, "has no optimizer"),
        ({"torch_compile": True}, "train.torch_compile has no effect with run.engine mlx"),
        ({"fp16": True}, "train.fp16 has no effect with run.engine mlx"),
        ({"optim_args": "a=1"}, "train.optim_args has no effect with run.engine mlx"),
        ({"quantization": "4bit"}, "model.quantization needs model.lora"),
    ],
)
def test_a_key_without_effect_is_refused_before_anything_loads(given, says):
    config = configuration("orpo")
    config.run = config.run.model_copy(update={"engine": "mlx"})
    config.model = config.model.model_copy(update={"name": "demo", "quantization": given.get("quantization")})
    config.train = config.train.model_copy(update={key: value for key, value in given.items() if key != "quantization"})
    with pytest.raises(ConfigError, match=says):
        plan_run(config)


def test_a_model_that_mlx_lm_computes_otherwise_is_refused():
    """A factor of its configuration that mlx-lm's class does not know."""
    stock = LlamaForCausalLM(LlamaConfig(**tiny.tiny_llama().config.to_dict() | {"hidden_act": "gelu"}))
    with pytest.raises(ModelError, match=r"scores unlike torch's.*run\.engine: torch"):
        opened(stock)


def test_an_adapter_that_mlx_has_not_is_refused():
    with pytest.raises(ModelError, match="not a LoRA of a linear layer"):
        opened(tiny.tiny_llama(), lora={"target_modules": ["embed_tokens"]})
