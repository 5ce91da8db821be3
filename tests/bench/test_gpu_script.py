"""bench/gpu.sh: wheels in parts, pieces that continue, and what it says of mistakes."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
MIB = 1024 * 1024


def gpu_sh(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *words], capture_output=True, text=True, env=os.environ | variables, check=False
    )


def python(directory: Path, body: str) -> str:
    """Return a program that is called in place of Python."""
    program = directory / "python"
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_pyarrow_is_in_the_first_part_and_no_part_is_too_large(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    sizes = {"aaa-1-py3-none-any.whl": 30, "bbb-1-py3-none-any.whl": 25, "pyarrow-26-cp312.whl": 52, "zzz-1-py3.whl": 2}
    for name, size in sizes.items():
        with open(files / name, "wb") as file:
            file.truncate(size * MIB)
    (tmp_path / "parts" / "7").mkdir(parents=True)  # of an earlier run
    assert gpu_sh("split", str(files), str(tmp_path / "parts"), LIMIT_MIB="54").returncode == 0
    parts = {part.name: sorted(wheel.name for wheel in part.iterdir()) for part in (tmp_path / "parts").iterdir()}
    assert parts == {
        "1": ["pyarrow-26-cp312.whl"],
        "2": ["aaa-1-py3-none-any.whl"],
        "3": ["bbb-1-py3-none-any.whl", "zzz-1-py3.whl"],
    }
    (files / "pyarrow-26-cp312.whl").symlink_to(tmp_path / "parts" / "1" / "pyarrow-26-cp312.whl")
    refused = gpu_sh("split", str(tmp_path / "parts" / "1"), str(tmp_path / "other"), LIMIT_MIB="50")
    assert (refused.returncode, "pyarrow-26-cp312.whl alone has more than 50 MiB" in refused.stderr) == (2, True)


def test_parts_are_installed_without_network(tmp_path: Path) -> None:
    part = tmp_path / "1"
    part.mkdir()
    about = "carried-1.0.dist-info"
    with zipfile.ZipFile(part / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "there = True\n")
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    done = gpu_sh("install", str(part), SITE=str(tmp_path / "site-packages"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "site-packages").iterdir()) == [about, "carried.py"]
    empty = gpu_sh("install", str(tmp_path / "site-packages"), SITE=str(tmp_path / "site-packages"))
    assert (empty.returncode, "has no wheels" in empty.stderr) == (2, True)


@pytest.mark.parametrize(("last", "code"), [(0, 0), (1, 1), (2, 2)])
def test_pieces_go_on_until_all_is_done(tmp_path: Path, last: int, code: int) -> None:
    out, site = tmp_path / "out", tmp_path / "site-packages"
    stub = python(
        tmp_path,
        f'echo "${{PYTHONPATH##*:}} $*"; echo x >> {out}/gpu.json; [ $(wc -l < {out}/gpu.json) -ge 3 ] && exit {last}; exit 3',
    )
    done = gpu_sh("run", str(out), "--only", "orpo", PYTHON=stub, SITE=str(site), DEVICE="cpu", MINUTES="4")
    assert done.returncode == code
    words = f"{site} -m bench --device cpu --resume --minutes 4 --output {out}/gpu.json --only orpo"
    assert done.stdout.splitlines() == [words] * 3
    assert (out / "gpu.log").read_text() == done.stdout


def test_the_other_measurements_are_run_alike(tmp_path: Path) -> None:
    out, stub = tmp_path / "out", python(tmp_path, 'echo "$*"')
    assert gpu_sh("heads", str(out), PYTHON=stub).stdout == f"-m bench.heads --device cuda --output {out}/heads.json\n"
    words = f"-m bench.gpu.profile --device cuda --output {out}/profile.json --only dpo\n"
    assert gpu_sh("profile", str(out), "--only", "dpo", PYTHON=stub).stdout == words
    words = gpu_sh("tests", str(out), PYTHON=stub).stdout.split()
    assert words[:8] == ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m"]
    assert {
        f"tests/{name}.py" for name in ("scoring/test_adapters", "training/test_waits", "attention/test_kernels")
    } <= set(words)
    assert (out / "tests.log").read_text().split() == words


def test_the_code_of_the_checkout_is_measured(tmp_path: Path) -> None:
    done = gpu_sh("piece", str(tmp_path / "out"), PYTHON=python(tmp_path, 'echo "$PYTHONPATH"'))
    *code, site = done.stdout.strip().split(":")
    root = SCRIPT.parents[1]
    assert code[:3] == [str(root), str(root / "core"), str(root / "eval")]
    assert str(root / "plugins" / "attention") in code
    assert site.endswith("site-packages")


def test_a_piece_that_measures_nothing_is_the_last(tmp_path: Path) -> None:
    done = gpu_sh("run", str(tmp_path / "out"), PYTHON=python(tmp_path, "exit 3"), MINUTES="2")
    assert (done.returncode, "a piece of 2 minutes measured nothing" in done.stderr) == (2, True)


def test_packages_outside_of_site_packages_are_refused(tmp_path: Path) -> None:
    done = gpu_sh("install", str(tmp_path), SITE=str(tmp_path / "site"))
    assert (done.returncode, "SITE must be a path with site-packages in it" in done.stderr) == (2, True)


def test_a_failure_is_shown(tmp_path: Path) -> None:
    done = gpu_sh("piece", str(tmp_path / "out"), PYTHON=python(tmp_path, "echo 'no CUDA device' >&2; exit 2"))
    assert (done.returncode, done.stderr) == (2, "no CUDA device\n")
    assert (tmp_path / "out" / "gpu.err").read_text() == done.stderr


@pytest.mark.parametrize("words", [(), ("measure",), ("install",), ("wheels",), ("split", "one")])
def test_wrong_usage_prints_the_usage(words: tuple[str, ...]) -> None:
    done = gpu_sh(*words)
    assert done.returncode == 2
    assert "bench/gpu.sh wheels DIR" in done.stderr


def test_packages_are_carried_in_the_versions_that_are_tested() -> None:
    text = SCRIPT.read_text()
    names = text.split("PACKAGES=(")[1].split(")")[0].split()
    pins = (SCRIPT.parents[1] / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pinned = {line.partition("==")[0] for line in pins}
    assert names[0] == "pyarrow"
    assert [name for name in names if "==" not in name and name.replace("_", "-") not in pinned] == []
