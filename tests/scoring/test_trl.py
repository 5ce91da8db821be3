"""Loss and gradient of an optimizer step equal those of TRL's trainers on TRL's token ids."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from alignkit.contract.batch import Example

from tests.helpers.engine import build_trainer, configuration
from tests.helpers.scoring import TOLERANCE, V, assert_same_gradients, build, gradients

BETA = 0.1
ARCHITECTURES = ["llama", "qwen2", "gpt2", "mistral-window", "gemma2", "mamba"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>"] + [f"w{i}" for i in range(3, V)]
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


@pytest.fixture(scope="module")
def dataset():
    from datasets import Dataset

    g = torch.Generator().manual_seed(0)

    def text(most):
        count = int(torch.randint(1, most, (1,), generator=g))
        return " ".join(f"w{int(i)}" for i in torch.randint(3, V, (count,), generator=g))

    return Dataset.from_list([{"prompt": text(20), "chosen": text(15), "rejected": text(15)} for _ in range(8)])


def settings(kind, tmp_path, device, **extra):
    return kind(
        output_dir=str(tmp_path), per_device_train_batch_size=8, report_to=[], use_cpu=device == "cpu", max_length=64, beta=BETA,
        disable_tqdm=True, gradient_checkpointing=False, bf16=False, **extra,
    )  # fmt: skip


def small_model(name, device, seed=0):
    model = build(name, seed, device)
    with torch.no_grad():  # large random logits make the odds so small that only the NLL would matter
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.dim() > 1 else 1.0)
    return model


def pairs(ids, attention, completion):
    """Return the rows ``[chosen..., rejected...]`` as examples."""
    half = len(ids) // 2

    def parts(i):
        real = attention[i].bool()
        return ids[i][real & ~completion[i]].tolist(), ids[i][real & completion[i]].tolist()

    examples = []
    for i in range(half):
        (prompt, chosen), (other, rejected) = parts(i), parts(half + i)
        assert prompt == other
        examples.append(Example(str(i), prompt, (chosen, rejected), index=i))
    return examples


def step(method, examples, start, policy, tmp_path, device):
    """Run one step with the weights of ``policy``; the reference is ``start``."""
    trainer, _ = build_trainer(configuration(method), tmp_path / "ours", examples, model=start, device=device)
    start.load_state_dict(policy.state_dict())
    return trainer.training_step(trainer.model, {}), gradients(trainer.model)


def compare(ours, theirs, loss, device):
    tol = TOLERANCE[device] / 2
    mine, gradient = ours
    loss.backward()
    torch.testing.assert_close(mine, loss.detach(), atol=0, rtol=tol)
    assert_same_gradients(gradient, gradients(theirs), tol=tol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_orpo_equals_trl(device, name, tokenizer, dataset, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        theirs, arguments = small_model(name, device), settings(ORPOConfig, tmp_path, device)
        trainer = ORPOTrainer(theirs, arguments, train_dataset=dataset, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer.concatenated_inputs(batch, padding_value=0)
    completion = inputs["concatenated_labels"] != -100
    examples = pairs(inputs["concatenated_input_ids"], inputs["concatenated_attention_mask"], completion)
    method = {"name": "orpo", "convention": "trl", "lambda": BETA}
    ours = step(method, examples, small_model(name, device), theirs, tmp_path, device)
    compare(ours, theirs, trainer.compute_loss(theirs.train(), batch), device)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dpo_equals_trl(device, name, tokenizer, dataset, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer

        theirs, reference = small_model(name, device), small_model(name, device, seed=1)
        trainer = DPOTrainer(
            theirs,
            ref_model=copy.deepcopy(reference),
            args=settings(DPOConfig, tmp_path, device),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    batch = next(iter(trainer.get_train_dataloader()))
    examples = pairs(batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool())
    ours = step({"name": "dpo", "beta": BETA}, examples, reference, theirs, tmp_path, device)
    compare(ours, theirs, trainer.compute_loss(trainer.model.train(), batch), device)
