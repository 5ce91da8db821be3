"""Every loss of the registry, unchanged, on an MLX policy: its loss and gradient are those on torch's."""

import copy
from importlib.metadata import entry_points

import pytest
import torch
from alignkit.contract import LoadedModel, registry
from alignkit.scoring.policy import ModelPolicy
from alignkit.testing import tiny
from alignkit.testing.engine import build_trainer, configuration

pytest.importorskip("mlx_lm", reason='pip install "alignkit[mlx]"')
from alignkit_mlx import MLXEngine

LOSSES = sorted({entry.name for entry in entry_points(group="align.losses")})


@pytest.fixture(scope="module")
def policies():
    """Policies of torch and MLX with the same weights."""
    model = tiny.tiny_llama()
    loaded = LoadedModel(copy.deepcopy(model), tiny.Words(), "tiny", "", is_adapter=False)
    return ModelPolicy(model), MLXEngine().policy(loaded, configuration("orpo"), torch.device("cpu"))


def step(trainer, policy):
    """Return the loss of one step; its gradients are those of the policy."""
    trainer.parts.policy = policy
    batch = trainer.steps.prepare(trainer.steps.rows_of_step(0), 0, 0.0)
    counts, output = batch.counts, trainer.parts.session.compute_loss(policy, batch, 0.0)
    loss = sum(term.sum * (term.weight / max(counts[term.per], 1)) for term in output.terms if term.weight)
    loss.backward()
    return loss.item()


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_and_its_gradient_are_those_of_torch(policies, tmp_path, name):
    method = "dpo" if "reference" in registry.load(registry.find("align.losses", name)).needs else "cpo"
    config = configuration({"name": method, "loss": {name: {"weight": 1.0}}, "alpha": 0.0})
    rows = tiny.rows("preference", 8)
    trainers = [
        build_trainer(config, tmp_path, rows, model=tiny.tiny_llama(seed=1)) for _ in policies
    ]  # some have a state
    if missing := trainers[0].parts.session.method.needs - MLXEngine.needs:
        assert missing == {"distributions"}
        return
    stock, mlx = policies
    stock.model.zero_grad()
    mlx.engine.clear()
    expected, found = (step(*pair) for pair in zip(trainers, policies, strict=True))
    assert found == pytest.approx(expected, abs=1e-5)
    found = mlx.engine.trained.to_torch(mlx.engine.gradients)
    largest = max(float(p.grad.abs().max()) for p in stock.model.parameters())
    for own, parameter in stock.model.named_parameters():
        difference = float((found[own] - parameter.grad).abs().max())
        assert difference <= 3e-5 * max(float(parameter.grad.abs().max()), 1e-3 * largest), own
