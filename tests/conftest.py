"""What every test shares: one thread a process (tests run side by side), nothing downloaded, caches of their own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator
from typing import Any

# Before torch is imported: two spinning OpenMP threads on busy cores are slower than one by a factor of forty.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# Without products of bfloat16, so that `model.dtype: auto` gives the same numbers on every CPU: float32.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"

import hypothesis
import pytest

from tests.helpers.forked import address, python
from tests.helpers.third_party import site

__all__ = ["own_cache", "site"]


# How long an example takes says how busy the machine is. The examples are the same each time, so that what passed once passes
# again; `make accept ACCEPT=other_examples` draws others.
hypothesis.settings.register_profile("same examples", deadline=None, derandomize=True)
hypothesis.settings.register_profile("other examples", deadline=None)
hypothesis.settings.load_profile(f"{os.environ.get('ALIGN_TEST_EXAMPLES', 'same')} examples")


def pytest_configure() -> None:
    """Have one server of forks for all processes of the session, started when it is first needed, and use it for spawned ones."""
    address()
    multiprocessing.set_executable(python())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """Have the processes that run tests be forks of the server too: what they would all import is imported once."""
    for spec in specs:
        spec.python = python()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests cache and consent to stays out of the user's directories."""
    os.environ["ALIGN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a command sets in the environment of its process ends with the test: the next test has the start's."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected: of a million objects that are made, none is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``device`` on the CPU and, marked ``gpu``, on CUDA where there is a GPU (`make test-gpu`)."""
    if "device" in metafunc.fixturenames:
        import torch

        found = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
        metafunc.parametrize("device", ["cpu", *found])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that have a slow test: the processes that share the tests then end at about the same time."""
    slow = {item.nodeid.partition("::")[0] for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.nodeid.partition("::")[0] not in slow)


_modules = 0


def pytest_runtest_setup() -> None:
    """Leave what imports made out of garbage collections: every training run asks for several, of a million objects."""
    global _modules
    if len(sys.modules) > _modules + 100:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()
