"""An engine from outside: a toy in NumPy passes the conformance kit, and trains, resumes and is evaluated through ``align``."""

from pathlib import Path

import pytest
from alignkit.testing import EngineConformance
from alignkit.testing.tiny import tiny_llama

from tests.helpers.third_party import Site

SOURCE = (Path(__file__).parent / "bigram.py").read_text()


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The toy as an installed distribution."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("site")
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        patch.delenv("ALIGN_PLUGINS", raising=False)
        site = Site(folder)
        site.install("align-bigram", SOURCE, group="engines", bigram="align_bigram:BigramEngine")
        yield site


class TestBigram(EngineConformance):
    name = "bigram"

    def torch_model(self):
        return tiny_llama(num_hidden_layers=0)


def test_it_is_short():
    assert len(SOURCE.splitlines()) < 150
