"""Loss and gradient of ORPO and DPO against TRL's own trainers on the same token ids."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from alignkit.scoring.policy import ModelPolicy
from alignkit.types import Example

from tests.scoring_support import V, assert_same_gradients, build, gradients

BETA = 0.1


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


def settings(kind, tmp_path, **extra):
    return kind(
        output_dir=str(tmp_path), per_device_train_batch_size=8, report_to=[], use_cpu=True, max_length=64, beta=BETA,
        disable_tqdm=True, gradient_checkpointing=False, bf16=False, **extra,
    )  # fmt: skip


def small_model(seed=0):
    model = build(seed=seed)
    with torch.no_grad():  # wide random logits make odds so small that nothing but the NLL would matter
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.dim() > 1 else 1.0)
    return model


def pairs(ids, attention, completion):
    """Take rows ``[chosen..., rejected...]`` apart into examples."""
    half = len(ids) // 2

    def parts(i):
        real = attention[i].bool()
        return ids[i][real & ~completion[i]].tolist(), ids[i][real & completion[i]].tolist()

    examples = []
    for i in range(half):
        (prompt, chosen), (other, rejected) = parts(i), parts(half + i)
        assert prompt == other
        examples.append(Example(str(i), prompt, (chosen, rejected)))
    return examples


def orpo_loss(policy, examples):
    """TRL's convention: NLL a token over prompt and chosen, and the log odds ratio of completion means."""
    scores = policy.score(examples, prompt=True)
    chosen, rejected = scores.split(scores.means())
    log_odds = (chosen - rejected) - (torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected)))
    total = scores.split(scores.sums())[0].sum() + scores.prompt_logps.sum()
    tokens = scores.split(scores.lengths)[0].sum() + len(scores.prompt_logps)
    return -total / tokens - BETA * F.logsigmoid(log_odds).mean()


def dpo_loss(policy, reference, examples):
    with torch.no_grad():
        base = reference.score(examples, grad=False)
        base_chosen, base_rejected = base.split(base.sums())
    scores = policy.score(examples)
    chosen, rejected = scores.split(scores.sums())
    return -F.logsigmoid(BETA * ((chosen - base_chosen) - (rejected - base_rejected))).mean()


def compare(ours, loss, theirs, their_loss):
    torch.testing.assert_close(loss, their_loss, atol=0, rtol=1e-5)
    loss.backward()
    their_loss.backward()
    assert_same_gradients(gradients(ours), gradients(theirs), tol=1e-5)


def test_orpo_equals_trl(tokenizer, dataset, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        theirs = small_model()
        trainer = ORPOTrainer(theirs, settings(ORPOConfig, tmp_path), train_dataset=dataset, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer.concatenated_inputs(batch, padding_value=0)
    completion = inputs["concatenated_labels"] != -100
    examples = pairs(inputs["concatenated_input_ids"], inputs["concatenated_attention_mask"], completion)
    ours = small_model()
    compare(ours, orpo_loss(ModelPolicy(ours), examples), theirs, trainer.compute_loss(theirs.train(), batch))


def test_dpo_equals_trl(tokenizer, dataset, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer

        theirs, reference = small_model(), small_model(seed=1)
        trainer = DPOTrainer(
            theirs,
            ref_model=copy.deepcopy(reference),
            args=settings(DPOConfig, tmp_path),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    batch = next(iter(trainer.get_train_dataloader()))
    examples = pairs(batch["input_ids"], batch["attention_mask"], batch["completion_mask"].bool())
    ours = small_model()
    loss = dpo_loss(ModelPolicy(ours), ModelPolicy(reference), examples)
    compare(ours, loss, theirs, trainer.compute_loss(trainer.model.train(), batch))
