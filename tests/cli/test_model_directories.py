"""Model directories that cannot be used: the file or the kind of model is named, in seconds, before anything large is built."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.demo import model_path

pytestmark = pytest.mark.slow

NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000
CONTENTS: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    "nested": (NESTED.encode(), "nested too deeply"),
    "a list": (b"[]", "expected a JSON object"),
    "null": (b"null", "expected a JSON object"),
    "empty": (b"", "invalid JSON"),
    "bytes": (b"\xff\xfe", "not UTF-8"),
    "digits": (b'{"x": ' + b"9" * 5000 + b"}", "too many digits"),
    "a named pipe": (os.mkfifo, "it is a named pipe, not a file"),
    "a directory": (os.mkdir, "it is a directory, not a file"),
    "a device": (lambda file: file.symlink_to("/dev/zero"), "it is a device, not a file"),
    "a broken link": (lambda file: file.symlink_to("/nowhere"), "a link to a file that does not exist"),
}
CUT = "is damaged or half-written"
WEIGHTS: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    **{name: CONTENTS[name] for name in ("a named pipe", "a directory", "a device", "a broken link")},
    "empty": (b"", CUT),
    "text": (NESTED.encode(), CUT),
    "a header that is not JSON": (b"\x02\0\0\0\0\0\0\0{]", CUT),
    "a header that is a list": (b"\x02\0\0\0\0\0\0\0[]", CUT),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
}
FILES = [(name, kind) for name in ("config.json", "tokenizer_config.json") for kind in CONTENTS]
FILES += [("generation_config.json", kind) for kind in ("nested", "bytes", "a named pipe")]
FILES += [("tokenizer.json", kind) for kind in ("a named pipe", "a device", "a broken link")]
FILES += [("model.safetensors", kind) for kind in WEIGHTS]

SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "ten million layers": ({"num_hidden_layers": 10**7}, "10,000,000 layers"),
    "a negative number of layers": (
        {"num_hidden_layers": -1},
        "num_hidden_layers in its config.json must be at least 0",
    ),
    "no heads": ({"num_key_value_heads": 0}, "num_key_value_heads in its config.json must be at least 1"),
    "a vocabulary of 10 ** 12": ({"vocab_size": 10**12}, "GiB for its weights in float32, and this machine has"),
    "wide": ({"hidden_size": 10**6}, "needs at least"),
    "a wide feed-forward": ({"intermediate_size": 10**11}, "needs at least"),
    "text for a number": ({"num_hidden_layers": "many"}, "num_hidden_layers must be int"),
    "an unknown type": ({"model_type": "banana"}, "model_type 'banana'"),
    "an encoder-decoder": ({"model_type": "t5"}, "encoder-decoder"),
    "a picture model": (
        {"model_type": "vit"},
        "is not a causal language model: transformers has none of model type vit",
    ),
    "an encoder": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "an encoder (BertForMaskedLM)"),
    "another encoder": ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "an encoder (RobertaModel)"),
    "a tagger": ({"architectures": ["LlamaForTokenClassification"]}, "it was saved as LlamaForTokenClassification"),
    "no head": ({"architectures": ["LlamaModel"], "tie_word_embeddings": False}, "without the head"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(model_path(), tmp_path / "model")


def refused(capfd: pytest.CaptureFixture[str], model: Path) -> str:
    capfd.readouterr()
    code = main(["generate", str(model), "--prompt", "hi", "--max-new-tokens", "1"])
    stderr = capfd.readouterr().err
    assert code == 2, stderr
    assert stderr.startswith("Error: ")
    assert stderr.count("\n") == 1
    assert len(stderr.replace(str(model), "")) < 300
    return stderr


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_file(name: str, kind: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, fragment = (WEIGHTS if name == "model.safetensors" else CONTENTS)[kind]
    (model / name).unlink()
    if callable(content):
        content(model / name)
    else:
        (model / name).write_bytes(content)
    sentence = refused(capfd, model)
    assert str(model / name) in sentence
    assert fragment in sentence


@pytest.mark.parametrize("name", SIZES)
def test_configuration(name: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes, fragment = SIZES[name]
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    sentence = refused(capfd, model)
    assert str(model) in sentence
    assert fragment in sentence


def test_half_of_the_weights(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    assert f"{file} {CUT}" in refused(capfd, model)


def test_dry_run_says_when_a_model_does_not_fit(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 10**8}))
    assert main(["run", "--dry-run", "--method", "orpo", "--model", str(model)]) == 0
    assert "more than the" in " ".join(capfd.readouterr().err.split())


FEW = "run --method orpo --set data.limit=40 --set data.eval_limit=9 --set train.per_device_train_batch_size=1".split()


def trained(capfd: pytest.CaptureFixture[str], model: Path, *options: str) -> list[str]:
    """Return the parameters that a dry run counts: all, and those that are trained."""
    assert main([*FEW, "--dry-run", *options, "--model", str(model)]) == 0
    return re.findall(r"parameters +\S+ ([\d,]+), ([\d,]+) trained", capfd.readouterr().err)[0]


@pytest.mark.parametrize("options", ["", "--processes 2 --strategy fsdp --set model.lora.r=4"])
def test_dry_run_needs_no_weights_and_a_run_does(model: Path, capfd: pytest.CaptureFixture[str], options: str) -> None:
    before = trained(capfd, model, *options.split())
    (model / "model.safetensors").unlink()
    assert trained(capfd, model, *options.split()) == before
    assert main([*FEW, "--model", str(model)]) == 2
    assert "has a config.json but no weights" in capfd.readouterr().err


def test_dry_run_counts_the_weights_of_an_adapter(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = model.parent / "adapter"
    adapter.mkdir()
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear"}
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": str(model)}))
    found = trained(capfd, adapter)
    assert found == trained(capfd, model, "--set", "model.lora.r=4")
    assert found[0] != found[1]


def test_model_that_reads_what_follows_is_not_trained() -> None:
    """XLNet is saved as a language model, and its scores of a prompt change with the completion."""
    import torch
    from alignkit.errors import ModelError
    from alignkit.scoring.probe import choose
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    xlnet = XLNetLMHeadModel(XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=32)).eval()
    with pytest.raises(ModelError, match="XLNetLMHeadModel is not causal: what follows a prompt changes"):
        choose(xlnet, ["plain"], torch.device("cpu"), {})
