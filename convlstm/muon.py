"""Muon, whose products of matrices are in a precision that the device computes in."""

from typing import Any

import torch
from pytorch_optimizer.optimizer import muon
from pytorch_optimizer.optimizer.utils import zero_power_via_newton_schulz_5
from torch import Tensor

from convlstm.bfloat16 import has_bfloat16


class Muon(muon.Muon):
    """The library's Muon, which orthogonalizes in bfloat16; here in float32 on a CPU without it.

    In software bfloat16 takes some forty times as long (docs/speed.md).
    """

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if updates[0].device.type != "cpu" or has_bfloat16():
            return muon.Muon._orthogonalize(group, updates)
        steps, weights = group["ns_steps"], group["ns_coeffs"]
        return [
            zero_power_via_newton_schulz_5(
                update.flatten(1), steps, weights=weights, dtype=torch.float32
            )
            for update in updates
        ]
