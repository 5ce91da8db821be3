"""simpo through alignkit's conformance kit."""

import torch
from alignkit.testing import MethodConformance
from alignkit_simpo import simpo_loss


class TestSimPO(MethodConformance):
    name = "alignkit-simpo:simpo"

    def pure_losses(self):
        pair = [torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        return [(lambda w, l: simpo_loss(w, l, beta=2.0, gamma=1.0), pair)]
