"""Acceptance check of the documentation: every block of the tutorials is run as it stands, and the site is built."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.helpers.pages import TUTORIALS

ROOT = Path(__file__).parents[2]


def pages(work: Path) -> dict[str, Any]:
    """The blocks of the tutorials run in order, each page in a directory of its own; the documentation builds without warnings."""
    found: dict[str, Any] = {}
    for page in TUTORIALS:
        found[page] = run_page(work, page)
    if importlib.util.find_spec("material") is None:
        return found | {"site": "not built: pip install -e '.[docs]'"}
    built = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build_site.py")], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return found | {"site": built.stdout.strip().rpartition(": ")[2]}


def run_page(work: Path, page: str) -> int:
    """Run the blocks of a page in a fresh directory and environment, and return their number."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    directory = work / page
    (directory / "home").mkdir(parents=True)
    names = re.findall(r"--attach (\S+)", text)
    for name in names:
        (directory / name).write_text("method: orpo\n")
    environment = own_environment(directory / "environment")
    environment |= {"HOME": str(directory / "home"), "fpath": str(directory / "home")}
    script = "\n".join(["set -e", *blocks])
    done = subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{page}: {done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    return len(blocks)


def own_environment(place: Path) -> dict[str, str]:
    """Make a virtual environment that sees what is installed here, with pip and ``align`` of its own, and return its variables."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    (site / "seen.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("align", "alignkit"), ("pip", "pip")):
        script = place / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{place}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
