"""Online DPO: a preference loss on pairs of the policy's own answers."""

from alignkit_online_dpo.method import OnlineDPO, OnlineDPOSettings

__all__ = ["OnlineDPO", "OnlineDPOSettings"]
