"""Every backend gives the scores and gradients of separate, unpadded forwards; the probe chooses the fastest one that does."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from alignkit.contract.batch import Example
from alignkit.errors import ConfigError, DataError, ModelError
from alignkit.scoring.backends import score_plan
from alignkit.scoring.plan import Scorer, make_plan
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import BACKENDS, install

from tests.helpers.scoring import (
    ARCHITECTURES,
    TOLERANCE,
    assert_same_gradients,
    build,
    gradients,
    plain_scores,
    rows,
    weigh,
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_backend_has_the_numbers_and_gradients_of_separate_forwards(device, name):
    """The expected backend of an architecture is chosen, or a faster one that a GPU has, and it and all slower ones are correct."""
    model, (_, chosen), tol = build(name, device=device), ARCHITECTURES[name], TOLERANCE[device]
    examples = rows(3, masked=True, most=16) + rows(2, seed=5, most=16)
    expected, expected_prompt = plain_scores(model, examples)
    (weigh(expected) + weigh(expected_prompt, 2)).backward()
    reference = gradients(model)
    found = ModelPolicy(model).scorer.backend
    assert found == chosen or (device == "cuda" and BACKENDS.index(found) < BACKENDS.index(chosen))
    for backend in BACKENDS[BACKENDS.index(chosen) :]:
        policy = ModelPolicy(model, install(model, backend))
        scores = policy.score(examples, prompt=True)
        torch.testing.assert_close(scores.logps, expected, atol=tol, rtol=1e-5)
        torch.testing.assert_close(scores.prompt_logps, expected_prompt, atol=tol, rtol=1e-5)
        (weigh(scores.logps) + weigh(scores.prompt_logps, 2)).backward()
        assert_same_gradients(gradients(model), reference, tol=tol)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_sequences_and_rows_do_not_depend_on_the_layout(device, backend):
    examples = rows(3, completions=3, masked=True)
    scores = ModelPolicy(model := build(device=device), install(model, backend)).score(examples, prompt=True)
    lengths = [e.scored_tokens(i) for e in examples for i in range(3)]
    assert scores.lengths.tolist() == lengths
    assert scores.sequence.tolist() == [s for s, n in enumerate(lengths) for _ in range(n)]
    assert scores.prompt_row.tolist() == [r for r, e in enumerate(examples) for _ in e.prompt[1:]]
    assert scores.rows == 3
    assert scores.sums().shape == (9,)


@pytest.mark.parametrize("backend", ["packed", "rows", "padded"])
def test_scores_do_not_depend_on_the_batch(device, backend):
    """Order of rows, cut of the batch, padding (a longer row) and other completions do not change a row's scores."""
    policy = ModelPolicy(model := build("mistral-window", device=device), install(model, backend))
    examples, tol = rows(6), TOLERANCE[device]
    together = torch.stack(policy.score(examples, grad=False).split(policy.score(examples, grad=False).sums()), 1)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = policy.score([examples[i] for i in order], grad=False)
    torch.testing.assert_close(torch.stack(shuffled.split(shuffled.sums()), 1), together[order], atol=tol, rtol=1e-5)
    alone = [policy.score([e.narrow(k)], grad=False).sums() for e in examples for k in (0, 1)]
    torch.testing.assert_close(torch.cat(alone).view(-1, 2), together, atol=tol, rtol=1e-5)


def test_rows_of_different_shapes_in_one_batch(device):
    """Rows may have any number of completions; with none, only the prompt is scored."""
    policy, tol = ModelPolicy(model := build(device=device)), TOLERANCE[device]
    bare = Example("bare", [5, 6, 7, 8], ())
    examples = [bare, *rows(1, completions=1), *rows(1, completions=4, seed=3)]
    scores = policy.score(examples, prompt=True)
    torch.testing.assert_close(scores.logps, plain_scores(model, examples[1:])[0], atol=tol, rtol=1e-5)
    ids = torch.tensor([bare.prompt], device=device)
    expected = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum()
    torch.testing.assert_close(scores.prompt_sums()[0], expected, atol=tol, rtol=1e-5)
    only = policy.score([bare])
    assert only.logps.shape == (0,)
    only.logps.sum().backward()  # a rank without scored tokens takes part in the backward


def test_prompts_that_are_not_shared_give_the_same_numbers(device):
    model, examples = build(device=device), rows(3)
    kernels = install(model).kernels
    shared = score_plan(model, make_plan(examples, prompt=True, kernels=kernels).to(device))
    apart = score_plan(model, make_plan(examples, prompt=True, share=False, kernels=kernels).to(device))
    for got, want in zip(apart, shared, strict=True):
        torch.testing.assert_close(got, want, atol=TOLERANCE[device], rtol=1e-5)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("a", [], ([1],)), "row 'a' has an empty prompt"),
        (Example("b", [1], ([2], [])), "completion 1 of row 'b' is empty"),
        (Example("c", [1], ([2, 3],), masks=([False, False],)), "completion 0 of row 'c' has no scored token"),
        (Example("d", [1], ([2, 3],), masks=([True],)), "has 1 entries for 2 tokens"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(example, message):
    with pytest.raises(DataError, match=message):
        make_plan([example])


# ---------------------------------------------------------------------------------------------- the probe


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_leaves_no_trace(device, training):
    model = build("mistral-long-window", device=device).train(training)
    states = {"cpu": torch.get_rng_state, "cuda": torch.cuda.get_rng_state}
    torch.manual_seed(7)
    random.seed(7)
    before = (torch.get_rng_state(), states[device](), random.getstate())
    install(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(states[device](), before[1])
    assert random.getstate() == before[2]
    assert all(m.training is training for m in model.modules())
    assert model.config.sliding_window == 4096
    assert all(p.grad is None for p in model.parameters())


def test_attention_that_is_silently_ignored_is_found_out():
    """Layers that read another configuration keep SDPA and attend to the whole packed row: wrong scores without an error."""
    model = build("llama")
    for layer in model.model.layers:
        layer.self_attn.config = copy.deepcopy(model.config)
    scorer = install(model)
    assert scorer.backend == "rows"
    for kernel, note in zip(("blocks", "sdpa"), scorer.notes, strict=True):
        start = f"packed ({kernel}) scoring was not used: its log-probabilities differ from plain forwards by up to"
        assert note.startswith(start)
    torch.testing.assert_close(
        ModelPolicy(model).score(rows(3)).logps, plain_scores(model, rows(3))[0], atol=2e-5, rtol=1e-5
    )


def test_notes_say_why_faster_backends_were_refused():
    assert install(build()).notes == ()
    assert install(build("gpt-oss")).notes[:2] == tuple(
        f"packed ({kernel}) scoring was not used: NotImplementedError: packed attention does not support s_aux."
        for kernel in ("blocks", "sdpa")
    )
    assert install(build("mixtral")).notes == ("The router's auxiliary loss is not part of the loss.",)


def test_kernels_are_those_of_the_device_that_is_named_and_run_where_the_model_is():
    """The model is on the CPU still, where no kernel runs that is for GPUs alone."""
    scorer = install(build(), device="cuda")
    assert str(scorer) == "packed (sdpa)"
    assert scorer.notes == (
        "packed (varlen) scoring was not used: varlen does not run on cpu.",
        "packed (flex) scoring was not used: flex does not run on cpu.",
    )


def test_a_named_backend_that_cannot_be_right_is_an_error_and_changes_nothing():
    model = build("bloom")
    assert install(model).backend == "padded"
    with pytest.raises(ModelError, match="rows scoring was not used"):
        install(model, "rows")
    assert install(model).backend == "padded"
    with pytest.raises(ConfigError, match='did you mean "packed"'):
        install(build(), "pakced")


def test_logits_changed_in_a_way_nobody_knows_are_left_to_the_model_itself():
    class Louder(type(build())):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    torch.manual_seed(0)
    model = Louder(build().config)
    scorer = install(model)
    assert scorer.backend == "plain"
    assert len(scorer.notes) == 4
    assert all("differ from plain forwards" in note for note in scorer.notes)


def test_dropout_is_never_shared():
    """With dropout on, completions do not share a prompt; attention dropout needs transformers' attention."""
    model = build("gpt2")
    model.transformer.drop.p = 0.1
    scorer = install(model)
    assert (scorer.backend, scorer.share) == ("packed", False)
    model = build("gpt2", attn_pdrop=0.1)
    assert (install(model).backend, install(model).share) == ("rows", False)
    policy, examples = ModelPolicy(model.train()), rows(2)
    assert not torch.equal(policy.score(examples).logps, policy.score(examples).logps)
    quiet = policy.score(examples, grad=False)
    assert torch.equal(quiet.logps, policy.score(examples, grad=False).logps)
    assert model.training
    assert not quiet.logps.requires_grad


def test_models_that_are_no_causal_language_models_are_refused():
    import transformers as hf

    t5 = hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="encoder-decoder"):
        install(t5)
    with pytest.raises(ModelError, match="not a transformers causal language model"):
        install(torch.nn.Linear(2, 2))


# ---------------------------------------------------------------------------------------------- the installed forward


def test_installing_again_returns_the_same_scorer():
    model = build()
    first = install(model)
    forward = model.forward
    assert install(model) is first
    assert install(model, "packed") is first
    assert install(model, "rows") == Scorer("rows", pad_id=first.pad_id)
    assert model.forward.__func__ is forward.__func__
    assert install(model) == Scorer("rows", pad_id=first.pad_id)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2", "falcon", "gemma3"])
def test_generation_is_what_it_was(device, name):
    model = build(name, device=device).eval()
    prompt = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 9]], device=device)
    arguments = {"input_ids": prompt, "attention_mask": (prompt > 0).long(), "max_new_tokens": 12, "do_sample": False}
    before = model.generate(**arguments, output_logits=True, return_dict_in_generate=True)
    install(model)
    after = model.generate(**arguments, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(before.sequences, after.sequences)
    torch.testing.assert_close(torch.stack(after.logits), torch.stack(before.logits), atol=1e-4, rtol=1e-4)


def test_a_deep_copy_runs_its_own_weights(device):
    model, examples = build(device=device), rows(2)
    policy = ModelPolicy(model)
    before = policy.score(examples, grad=False).logps
    twin = ModelPolicy(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(twin.score(examples, grad=False).logps, before)
    assert not torch.allclose(policy.score(examples, grad=False).logps, before, atol=1e-2)
    twin.score(examples).logps.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.model.parameters())


def test_saving_writes_nothing_of_the_scorer(tmp_path):
    import transformers as hf

    model = build()
    install(model)
    model.save_pretrained(tmp_path)
    assert not any("alignkit" in file.read_text() for file in tmp_path.glob("*.json"))
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    examples = rows(2)
    torch.testing.assert_close(
        plain_scores(loaded, examples)[0], ModelPolicy(model).score(examples).logps, atol=2e-5, rtol=1e-5
    )


def test_low_precision_weights_are_scored_by_the_packed_backend(device):
    model = build(device=device).to(torch.bfloat16)
    policy, examples = ModelPolicy(model), rows(3)
    assert policy.scorer.backend == "packed"
    got, want = policy.score(examples).logps, plain_scores(model, examples)[0]
    assert got.dtype == torch.float32
    assert float((got - want).detach().abs().mean()) < 0.05
