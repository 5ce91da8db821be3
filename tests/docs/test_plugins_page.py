"""The hooks and the example plugins of docs/plugins.md."""

import re
from pathlib import Path

import torch
from alignkit import Batch, Example, RunConfig
from alignkit.contract import hooks as hookspecs
from alignkit.contract.checks import hook_arguments, hook_names
from alignkit.scoring.policy import ModelPolicy
from alignkit.training.session import Session

from tests.helpers.engine import build_trainer, configuration, random_prompts
from tests.helpers.eval import tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"


def test_every_hook_is_documented_with_its_arguments():
    page = PAGE.read_text()
    documented = dict(re.findall(r"^### `(align_\w+)\(([^)]*)\)`$", page, re.MULTILINE))
    assert documented == {name: ", ".join(hook_arguments(name)) for name in hook_names()}
    exclusive = page.partition("## Exclusive hooks")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### `(\w+)", exclusive, re.MULTILINE)) == hookspecs.EXCLUSIVE
    specified = {name: getattr(hookspecs.AlignSpecs, name).align_spec["firstresult"] for name in hook_names()}
    broadcast = page.partition("## Broadcast hooks")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### `(\w+)", broadcast, re.MULTILINE)) == {
        name for name, first in specified.items() if not first
    }


def test_the_method_shown_in_the_documentation_works(site):
    source = re.search(r"```python\n(# align_focal/__init__.py.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    site.install("align-focal", source, focal="align_focal:Focal")
    session = Session.open(RunConfig(method={"name": "focal", "gamma": 1.5}, data="d"))
    assert session.method.settings.gamma == 1.5
    policy = ModelPolicy(tiny_model())
    batch = Batch([Example("a", [1, 2], ([3], [4, 5])), Example("b", [1], ([3, 4], [5]))])
    output = session.compute_loss(policy, batch, 0.0)
    output.terms[0].sum.backward()
    # By hand: -(1 - p)^gamma log p over the three tokens of the chosen answers.
    logp = policy.score(batch.narrow(0).examples).logps
    assert torch.allclose(output.terms[0].sum, (-((1 - logp.exp()) ** 1.5) * logp).sum())


def test_the_on_policy_method_shown_in_the_documentation_learns(site, tmp_path):
    source = re.search(r"```python\n(# align_reinforce/__init__.py.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    site.install("align-reinforce", source, reinforce="align_reinforce:Reinforce")
    method = {"name": "reinforce", "reward": "length", "max_new_tokens": 8}
    train = {"optim": "adamw_torch", "max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 5e-3}
    trainer, seen = build_trainer(configuration(method, **train), tmp_path, random_prompts(60))
    trainer.train()
    rewards = [record["reward"] for record in seen.logs if "reward" in record]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_the_command_shown_in_the_documentation_works(site):
    files = dict(re.findall(r"```python\n# (align_hello/\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert sorted(files) == ["align_hello/__init__.py", "align_hello/cli.py"]
    (site.path / "align_hello").mkdir()
    for name, code in files.items():
        (site.path / name).write_text(code)
    site.install("align-hello", module="unused", group="commands", hello="align_hello:COMMAND")
    assert site.align("hello", "--name", "you").stdout == "hello you\n"
