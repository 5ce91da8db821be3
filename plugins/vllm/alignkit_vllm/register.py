"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

from __future__ import annotations

from contextlib import suppress

BACKEND = "alignkit"
"""Name of the backend: ``vllm serve MODEL --weight-transfer-config '{"backend": "alignkit"}'``."""


def register() -> None:
    """Make the backend known to vLLM's weight transfer; it may be called several times."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    with suppress(ValueError):  # it is known
        WeightTransferEngineFactory.register_engine(BACKEND, "alignkit_vllm.receive", "FilesEngine")
