"""The kernels that CPU libraries keep for products of half precision, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

_PRODUCTS = """
import ctypes, os, sys
import torch
from alignkit import RunConfig
from alignkit_precision import set_precision
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
set_precision(LlamaForCausalLM(LlamaConfig(**sizes)).to(getattr(torch, sys.argv[1])), None)
torch.set_num_threads(1)
weight = torch.ones(32, 32, dtype=torch.bfloat16)
rows = torch.ones(2000, 32, dtype=torch.bfloat16)

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

for count in range(1, 300):
    rows[:count] @ weight
before = resident()
for count in range(300, 900):
    rows[:count] @ weight
print((resident() - before) / 2**20)
"""


def test_batches_of_ever_new_lengths_do_not_fill_the_memory_with_kernels() -> None:
    limits = ("ONEDNN_MAX_CPU_ISA", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    environment = {name: value for name, value in os.environ.items() if name not in limits}
    command = [sys.executable, "-c", _PRODUCTS, "bfloat16"]
    grown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert float(grown) < 60  # MiB; without a limit 380
