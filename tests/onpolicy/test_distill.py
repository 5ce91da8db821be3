"""Knowledge distillation: the divergences, the loss over chunks, and the share of on-policy batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.config import ModelConfig, RunConfig
from alignkit.contract import Batch, Example
from alignkit.demo import model_path
from alignkit.errors import ConfigError, DataError, ModelError
from alignkit.scoring.distributions import HeadDistributions
from alignkit.scoring.policy import ModelPolicy
from alignkit.scoring.scorer import install
from alignkit.training.checkpoints import last_checkpoint
from alignkit_checks.no_effect import refuse_sharding
from alignkit_distill import Distill, DistillSettings, StoredTeacher, coarsened, divergence
from transformers import AutoTokenizer

from tests.helpers.data import make_tokenizer
from tests.helpers.engine import StopAt, build_trainer, configuration, random_pairs, tiny_llama, weights
from tests.helpers.onpolicy import TRAIN, rollouts

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
N, V = 6, 11


def logits(seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def by_definition(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """By equation 1 of arXiv:2306.13649."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    if beta in (0, 1):
        return kl(q, p) if beta else kl(p, q)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def both(function: Any, student: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values and the gradient of a weighted sum of them."""
    leaf = student.clone().requires_grad_()
    values = function(leaf)
    (values * torch.arange(1, 1 + len(values))).sum().backward()
    assert leaf.grad is not None
    return values.detach(), leaf.grad


@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_and_its_gradient_are_the_definition_s(beta: float, spread: float) -> None:
    student, teacher = logits(0, spread), logits(1, spread)
    found = both(lambda z: divergence(z.log_softmax(-1), teacher.log_softmax(-1), beta=beta), student)
    expected = both(lambda z: by_definition(z, teacher, beta), student)
    if spread < 60:  # the definition divides 0 by 0 there
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    assert all(bool(part.isfinite().all()) for part in found)
    assert bool((found[0] >= 0).all())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_is_trl_s(beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = logits(0), logits(1)
    theirs = GKDTrainer.generalized_jsd_loss(
        student[None], teacher[None], torch.ones(1, N, dtype=torch.long), beta, temperature
    )
    mine = divergence((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), beta=beta)
    torch.testing.assert_close(mine.mean(), theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_distributions_have_no_divergence_and_no_gradient_at_all(beta: float, dtype: torch.dtype) -> None:
    student = logits(2, 30.0).to(dtype)
    values, gradient = both(lambda z: divergence(z.log_softmax(-1), student.log_softmax(-1), beta=beta), student)
    assert not values.any()
    assert not gradient.any()


@pytest.mark.parametrize("beta", BETAS)
def test_outcomes_taken_together_bound_the_divergence_from_below(beta: float) -> None:
    student, teacher = logits(0), logits(1).log_softmax(-1)
    whole = divergence(student.log_softmax(-1), teacher, beta=beta)
    before = torch.zeros(N, dtype=torch.float64)
    for k in (1, 4, V - 1):
        ids = teacher.topk(k).indices

        def part(z: torch.Tensor, ids: torch.Tensor = ids) -> torch.Tensor:
            return divergence(coarsened(z.log_softmax(-1), ids), coarsened(teacher, ids), beta=beta)

        values, gradient = both(part, student)
        assert bool((values >= before - 1e-12).all())
        before = values
    torch.testing.assert_close(before, whole, atol=1e-12, rtol=1e-9)
    expected = both(lambda z: divergence(z.log_softmax(-1), teacher, beta=beta), student)[1]
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)


def test_chunks_never_hold_all_tokens_and_change_nothing() -> None:
    """What the backward keeps of 40 tokens is less than one tensor of tokens x vocabulary."""
    head, states, vocabulary = torch.nn.Linear(8, 300), torch.randn(40, 8), 300
    teacher = HeadDistributions(torch.randn(40, 8), torch.nn.Linear(8, vocabulary), 7)
    seen: list[int] = []

    def compare(student: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append(len(student))
        return divergence(student, given, beta=0.5)

    kept: list[int] = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)  # type: ignore[func-returns-value]
    with keep:
        values = HeadDistributions(states, head, 7).map(compare, teacher)
    assert max(seen) == 7
    assert sum(kept) < 40 * vocabulary
    gradient = torch.autograd.grad(values.sum(), [*head.parameters()])
    whole = HeadDistributions(states, head, 40).map(compare, teacher)
    torch.testing.assert_close(values, whole, atol=1e-6, rtol=1e-6)
    for mine, expected in zip(gradient, torch.autograd.grad(whole.sum(), [*head.parameters()]), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def completions(n: int, seed: int = 0) -> list[Example]:
    return [example.narrow(0) for example in random_pairs(n, seed, longest=9)]


def taught(teacher: Any, **given: Any) -> Distill:
    """Return the method with a model as its teacher."""
    method = Distill(DistillSettings(teacher="demo", **given))
    method.teacher()._policies[torch.device("cpu")] = ModelPolicy(teacher)
    return method


@pytest.mark.parametrize("options", [{}, {"teacher_top_k": 5}, {"beta": 0.0}, {"beta": 1.0}], ids=str)
@pytest.mark.parametrize("backend", ["packed", "rows", "padded", "plain"])
def test_a_teacher_that_equals_the_student_teaches_nothing(backend: Any, options: dict[str, Any]) -> None:
    student, teacher = tiny_llama(), tiny_llama()
    install(teacher, backend)
    output = taught(teacher, **options).align_compute_loss(
        ModelPolicy(student, install(student, backend)), Batch(completions(4))
    )
    output.terms[0].sum.backward()
    assert float(output.terms[0].sum) == 0.0
    assert not any(bool(p.grad.any()) for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("wide", [128, 140])
def test_the_loss_is_the_mean_over_tokens_by_plain_forwards(wide: int) -> None:
    """Also with embeddings of the teacher that are padded to another size: its further tokens do not exist."""
    student, teacher, rows = tiny_llama(), tiny_llama(seed=1, vocab_size=wide), completions(4)
    batch = Batch(rows)
    output = taught(teacher, beta=0.3, temperature=0.7).align_compute_loss(ModelPolicy(student), batch)
    (term,) = output.terms
    loss = term.sum / batch.counts[term.per]
    loss.backward()
    mine = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    student.zero_grad()
    total, tokens = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.completions[0]]])
        z, t = (model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1, :128] / 0.7 for model in (student, teacher))
        total, tokens = total + by_definition(z, t.detach(), 0.3).sum(), tokens + len(row.completions[0])
    torch.testing.assert_close(loss, total / tokens, atol=1e-6, rtol=1e-5)
    (total / tokens).backward()
    expected = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_share_of_on_policy_batches_is_exact(share: float) -> None:
    method = taught(tiny_llama(seed=1), lmbda=share, max_new_tokens=3)
    made = rollouts(tiny_llama(), method.settings)
    sampled = []
    for _ in range(10):
        batch = method.align_prepare_batch(Batch(completions(2)), made)
        sampled.append(batch.shared["on_policy"])
        assert ("ended" in batch.columns) == bool(sampled[-1])
    assert sum(sampled) == pytest.approx(10 * share)
    assert method.rows == ("prompt" if share == 1 else "completion")


def test_resume_inside_a_rollout_equals_uninterrupted(tmp_path: Path) -> None:
    """With batches of both kinds; what is trained on of the data's completions is kept as well."""
    method = {"name": "distill", "teacher": "demo", "max_new_tokens": 4, "epochs": 2, "minibatches": 2}
    rows = [
        Example(e.id, e.prompt, e.completions, e.index, masks=([True, *[False] * (len(e.completions[0]) - 1)],))
        for e in completions(40)
    ]

    def make(output: Path, *callbacks: Any) -> Any:
        return build_trainer(configuration(method, **TRAIN | {"max_steps": 8}), output, rows, callbacks=callbacks)

    whole, seen = make(tmp_path / "whole")
    whole.train()
    assert {record["on_policy"] for record in seen.logs if "on_policy" in record} == {0.0, 1.0}
    for step in (3, 6):
        make(tmp_path / f"cut{step}", StopAt(step))[0].train()
        second, _ = make(tmp_path / f"cut{step}")
        second.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / f"cut{step}")))
        assert torch.equal(weights(second.model), weights(whole.model))


def test_the_student_learns_the_teacher(tmp_path: Path) -> None:
    config = configuration(
        {"name": "distill", "teacher": "demo", "max_new_tokens": 6}, **TRAIN | {"max_steps": 16, "learning_rate": 1e-2}
    )
    trainer, _ = build_trainer(config, tmp_path, completions(60), held_out=completions(10, 1))
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def student_of(path: Path | str, **method: Any) -> RunConfig:
    return RunConfig(model=ModelConfig(name=str(path)), method={"name": "distill", **method})  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
def test_a_teacher_beside_a_sharded_student_is_refused(strategy: str) -> None:
    config = student_of("demo")
    sharded = config.model_copy(update={"run": config.run.model_copy(update={"strategy": strategy})})
    with pytest.raises(ConfigError, match=f"cannot be combined with run.strategy {strategy}: use ddp or zero2"):
        refuse_sharding(sharded, Distill(DistillSettings(teacher="demo")))
    refuse_sharding(sharded, Distill(DistillSettings(teacher_logps="f.parquet")))


def test_a_missing_teacher_is_refused_by_the_key_that_names_it() -> None:
    with pytest.raises(ModelError, match=r"method\.teacher: there is no model or run at no/such/teacher"):
        Distill(DistillSettings(teacher="no/such/teacher")).align_build_model(student_of("demo"))


def test_a_teacher_with_another_tokenizer_is_refused_with_the_first_token_that_differs(tmp_path: Path) -> None:
    for file in model_path().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    words = saved["model"]["vocab"]
    words["\u0120pink"], words["\u0120red"] = words["\u0120red"], words["\u0120pink"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    method = Distill(DistillSettings(teacher=str(tmp_path)))
    with pytest.raises(
        ConfigError, match=r"has another vocabulary than the student: the token '\u0120(pink|red)' has id \d+ in"
    ):
        method.align_build_model(student_of("demo"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "distill needs a teacher"),
        ({"teacher_logps": "f", "lmbda": 0.5}, "not of sampled answers"),
        ({"teacher_logps": "f", "teacher": "demo"}, "set teacher_top_k"),
        ({"teacher_logps": "f", "teacher_top_k": 3}, "teacher_top_k has no effect"),
        ({"teacher": "demo", "missing_end_penalty": 1.0}, "trains on no reward"),
        ({"teacher": "demo", "lmbda": 0, "reward": "length"}, "no answers are sampled"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillSettings(**settings)


def test_a_file_of_the_teacher_s_log_probabilities_teaches_as_the_teacher(tmp_path: Path) -> None:
    file = tmp_path / "teacher.parquet"
    given: dict[str, Any] = {"name": "distill", "temperature": 0.7}
    top = given | {"teacher": "demo", "teacher_top_k": 5}

    def made(method: dict[str, Any], rows: list[Example]) -> Any:
        trainer, _ = build_trainer(configuration(method, **TRAIN), tmp_path / "run", rows, held_out=completions(3, 1))
        trainer.parts.tokenizer = make_tokenizer()
        trainer.parts.session.build_trainer(trainer.parts)
        return trainer

    def loss(trainer: Any, rows: list[Example]) -> torch.Tensor:
        return trainer.parts.session.compute_loss(trainer.parts.policy, Batch(rows), 0.0).terms[0].sum  # type: ignore[no-any-return]

    rows = completions(6)
    wanted = loss(made(top | {"lmbda": 0.0}, rows), rows)
    written = made(top | {"teacher_logps": str(file)}, rows)
    assert torch.equal(loss(written, rows), wanted)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]
    read = made(given | {"teacher_logps": str(file)}, rows[::-1])
    torch.testing.assert_close(loss(read, rows[::-1]), wanted)
    with pytest.raises(DataError, match=r"lacks 2 of 11 rows \(first: row-6\)"):
        made(given | {"teacher_logps": str(file)}, completions(8))
    with pytest.raises(ConfigError, match=r"was written with temperature 0\.7, and it is 1.0 here"):
        made({"name": "distill", "teacher_logps": str(file)}, rows)
    with pytest.raises(ConfigError, match="was written with teacher_top_k 5, and it is 6 here"):
        made(top | {"teacher_logps": str(file), "teacher_top_k": 6}, rows)
    with pytest.raises(ConfigError, match="was written with teacher demo, and it is other here"):
        made(top | {"teacher_logps": str(file), "teacher": "other"}, rows)
    stored = StoredTeacher.read(DistillSettings(teacher_logps=str(file), temperature=0.7))
    stored.require_same_tokens(make_tokenizer())
    with pytest.raises(ConfigError, match="written with another tokenizer than the student's"):
        stored.require_same_tokens(AutoTokenizer.from_pretrained(model_path()))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not", b'{"a": 1}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "teacher.parquet"
    if content is not None:
        file.write_bytes(content)
    message = "there is no file" if content is None else "is not a file of a teacher's log-probabilities"
    with pytest.raises(ConfigError, match=message):
        StoredTeacher.read(DistillSettings(teacher_logps=str(file)))
