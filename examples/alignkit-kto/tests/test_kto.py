"""kto through alignkit's conformance kit."""

import torch
from alignkit.testing import MethodConformance
from alignkit_kto import kto_loss


class TestKTO(MethodConformance):
    name = "alignkit-kto:kto"
    capabilities = frozenset({"whole_step"})  # its KL is estimated over the optimizer step
    settings = {"beta": 0.5}
    steps = 60

    def pure_losses(self):
        ratios = torch.rand(4, dtype=torch.float64, requires_grad=True)
        labels = torch.tensor([True, False, True, False])
        return [(lambda r: kto_loss(r, labels, 0.3, beta=0.5), [ratios])]
