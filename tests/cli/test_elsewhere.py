"""What is written as for another library: the answer names what it is here, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit.__main__ import main

TRL = (
    "model_name_or_path: demo\ndataset_name: d\nper_device_train_batch_size: 2\nuse_peft: true\nlora_r: 16\nbeta: 0.1\n"
)
AXOLOTL = "base_model: m\nadapter: qlora\nrl: dpo\ndatasets: [{path: p}]\nsequence_len: 512\nmicro_batch_size: 2\n"
FACTORY = "model_name_or_path: m\nstage: dpo\nfinetuning_type: lora\npref_beta: 0.1\ndataset: d\ncutoff_len: 512\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("run --method dpo --beta 0.2", "No such option --beta: write --set beta=0.2"),
        ("run --method orpo --lr=1e-5", "No such option --lr: write --set train.learning_rate=1e-5"),
        ("sweep --num-train-epochs 3", "No such option --num-train-epochs: write --set train.num_train_epochs=3"),
        ("run --bf16 --method orpo", "No such option --bf16: write --set train.bf16=true"),
        ("run --load_in_4bit", "No such option --load_in_4bit: write --set model.quantization=4bit (or 8bit)"),
        ("run --use_peft", "No such option --use_peft: write --set model.lora.r=16"),
        ("run --dataset my.jsonl", "No such option --dataset: write --data my.jsonl"),
        ("run --nonsense 5", "No such option '--nonsense'."),
        (
            "run trl.yaml",
            "trl.yaml is a configuration of TRL: align init --from trl.yaml writes one of alignkit from it",
        ),
        ("run axolotl.yaml", "axolotl.yaml is a configuration of axolotl: align init --from axolotl.yaml writes"),
        ("sweep factory.yaml --over beta=1,2", "factory.yaml is a configuration of LLaMA-Factory: align init --from"),
        ("run ours.yaml", 'ours.yaml:2: unknown key model_name_or_path, did you mean "model.name"?'),
        ("run rows.jsonl", "rows.jsonl holds rows, not a configuration: give it as --data rows.jsonl"),
        ("run lambda=0.1", "lambda=0.1: no such file; a setting is given as --set lambda=0.1"),
        ("run --method DPO", 'unknown method "DPO", did you mean "dpo"?'),
        ("train trl.yaml", 'unknown command "train", did you mean "run"? (align --help lists them)'),
        ("dpo --model demo", 'unknown command "dpo": it is a method, write align run --method dpo'),
        ("run --method ipo", 'unknown method "ipo": it is a loss, add --set loss=ipo to a method with losses'),
    ],
)
def test_what_another_library_calls_otherwise(
    line: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"trl": TRL, "axolotl": AXOLOTL, "factory": FACTORY, "ours": f"method: dpo\n{TRL}"}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    before = sorted(tmp_path.iterdir())
    assert main(line.split()) == 2
    assert f"Error: {answer}" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
