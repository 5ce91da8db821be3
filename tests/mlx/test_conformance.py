"""The MLX engine passes the conformance tests of engines."""

import pytest
from alignkit.testing import EngineConformance

pytest.importorskip("mlx_lm", reason='pip install "alignkit[mlx]"')


class TestMLX(EngineConformance):
    name = "mlx"
    optimizers = ("adamw_torch", "adafactor", "sgd")
