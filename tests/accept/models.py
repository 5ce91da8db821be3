"""Tiny models with random weights: tiny, tiny2 and uniform (Llama), llama3 (untied, Llama 3's template), qwen3 (tied, Qwen 3's)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIMPLE = "{% for m in messages %}<{{m.role}}> {{m.content}}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]


def make_models(directory: Path) -> Path:
    """Write every model into a folder of its name and return ``directory``."""
    import transformers as hf

    spec = find_spec("trl")  # not imported: only its templates are wanted
    assert spec
    templates = Path(str(spec.origin)).parent / "chat_templates"
    plain = make_tokenizer()
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 256}
    shape = {**SIZE, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, "initializer_range": 0.2}
    small = hf.LlamaConfig(vocab_size=len(plain), tie_word_embeddings=True, **shape, **numbers)
    _save(directory / "tiny", small, plain)
    _save(directory / "tiny2", small, plain, seed=1)
    _save(directory / "uniform", small, plain, change=lambda parameter: parameter.zero_())
    wide = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 512}
    llama = _tokenizer(LLAMA, (templates / "llama3.jinja").read_text(), bos=LLAMA[0], eos=LLAMA[-1], first=True)
    _save(directory / "llama3", hf.LlamaConfig(vocab_size=len(llama), tie_word_embeddings=False, **wide), llama)
    qwen = _tokenizer(QWEN, (templates / "qwen3.jinja").read_text(), eos=QWEN[2], pad=QWEN[0])
    _save(directory / "qwen3", hf.Qwen3Config(vocab_size=len(qwen), head_dim=8, tie_word_embeddings=True, **wide), qwen)
    return directory


def make_tokenizer() -> Any:
    """Return the tokenizer of the models tiny, tiny2 and uniform."""
    return _tokenizer(["<pad>", "<s>", "</s>"], SIMPLE, bos="<s>", eos="</s>", pad="<pad>")


def make_adapter(directory: Path, base: Path, *, alpha: int = 8, seed: int = 0) -> Path:
    """Write a LoRA adapter of a model, its tensors drawn by ``seed``, and return its directory."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(directory)
    return directory


def _tokenizer(
    special: Sequence[str],
    template: str,
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
    first: bool = False,
) -> Any:
    """Return a byte-level BPE tokenizer trained on the demo's texts; with ``first``, BOS begins every text."""
    from alignkit.demo import data_path
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    rows = map(json.loads, data_path("test").read_text().splitlines()[:400])
    made.train_from_iterator((f"{row['prompt']} {row['chosen']} {row['rejected']}" for row in rows), trainer)
    if first:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.chat_template = template
    return tokenizer


def _save(
    path: Path, config: Any, tokenizer: Any, *, seed: int = 0, change: Callable[[Any], object] = lambda parameter: None
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            change(parameter)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
