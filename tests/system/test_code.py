"""Digests of code: what a plugin imports counts as well, unless it is an installed library."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from alignkit.system.code import code_of


@pytest.mark.parametrize("edited", ["plugin_x/parts/deep.py", "helper_x.py", "below_x.py"])
def test_the_code_of_local_imports_counts(edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {
        "plugin_x/__init__.py": "",
        "plugin_x/parts/deep.py": "def late():\n    import os, helper_x as h\n",
        "helper_x.py": "from below_x import value\nimport numpy\n",
        "below_x.py": "value = 1\n",
        "unrelated_x.py": "value = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    importlib.invalidate_caches()

    def now() -> str:
        code_of.cache_clear()
        return code_of("plugin_x.parts:Suite")

    before = now()
    (tmp_path / "unrelated_x.py").write_text("value = 2\n")
    assert now() == before
    (tmp_path / edited).write_text(files[edited] + "# edited\n")
    assert now() != before
