"""Which edits of an objective's code count: those that Python carries out."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit import settings
from alignkit_eval.sweeps import earlier

LOSS = '"""A loss."""\n\nfrom mine_loss.parts import SCALE  # its scale\n\ndef loss(x):\n    """Return it."""\n    return SCALE * x\n'


@pytest.mark.parametrize(
    ("file", "text", "counts"),
    [
        ("own.py", LOSS.replace("# its scale", "# as in the paper").replace("Return it.", "Return the loss."), False),
        ("own.py", LOSS.replace("SCALE * x", "SCALE + x"), True),
        ("parts.py", "SCALE = 3.0\n", True),
        ("other.py", "SCALE = 3.0\n", False),
    ],
)
def test_the_modules_that_an_objective_imports(
    file: str, text: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"mine_{file[:-3]}_{counts}"  # Python keeps a package that it has found
    package = tmp_path / name
    package.mkdir()
    for part, content in {"__init__": "", "own": LOSS, "parts": "SCALE = 2.0\n", "other": "SCALE = 2.0\n"}.items():
        (package / f"{part}.py").write_text(content.replace("mine_loss", name))
    monkeypatch.syspath_prepend(tmp_path)
    before = earlier._code.__wrapped__((f"{name}.own",))
    (package / file).write_text(text.replace("mine_loss", name))
    assert (before != earlier._code.__wrapped__((f"{name}.own",))) is counts
    assert [module for module, _ in before] == [f"{name}.own", f"{name}.parts"]


def test_every_loss_of_a_mix_and_a_reward_in_a_file_count(tmp_path: Path) -> None:
    def of(*sets: str, method: str = "dpo") -> str:
        return earlier.code_of_objective(settings.resolve(method=method, sets=sets).config)

    assert of("beta=0.1") == of("beta=0.2")
    assert len({of(), of("loss=bco"), of("loss={sigmoid: 1, bco: 1}")}) == 3
    reward = tmp_path / "mine.py"
    reward.write_text("def score(completions, **rest):\n    return [1.0 for _ in completions]\n")
    first = of(f"reward={reward}:score", method="grpo")
    reward.write_text(reward.read_text().replace("1.0", "2.0"))
    assert first != of(f"reward={reward}:score", method="grpo")
