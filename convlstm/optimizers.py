"""The optimizers that a predictor trains with."""

from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

OptimizerName = Literal["adam", "adamw", "muon"]
OPTIMIZERS = get_args(OptimizerName)


def build_optimizer(
    network: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float
) -> Optimizer:
    """The optimizer of all parameters of a network.

    Args:
        network: An `EncoderForecaster`.
        name: "adam" (D. Kingma and J. Ba 2015, https://arxiv.org/abs/1412.6980), "adamw"
            (I. Loshchilov and F. Hutter 2019, https://arxiv.org/abs/1711.05101), or "muon": the
            momentum of each convolution kernel but the head's, flattened to a matrix (first axis,
            all others), is made orthogonal before it is stepped along (K. Jordan et al. 2024,
            https://kellerjordan.github.io/posts/muon), with steps as large as Adam's (J. Liu et al.
            2025, https://arxiv.org/abs/2502.16982). All other parameters have Adam.
        learning_rate: Of all parameters.
        weight_decay: For adamw all parameters', for muon the kernels'.
    """
    if name == "adam":
        return torch.optim.Adam(network.parameters(), lr=learning_rate)
    if name == "adamw":
        return torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay)
    # Here, because whoever does not use it need not wait half a second for it.
    from convlstm.muon import Muon

    kernels, others = split_parameters(network)
    return Muon(
        [
            {
                "params": kernels,
                "lr": learning_rate,
                "weight_decay": weight_decay,
                "use_adjusted_lr": True,
                "use_muon": True,
            },
            {
                "params": others,
                "lr": learning_rate,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "use_muon": False,
            },
        ]
    )


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Kernels that Muon trains, and the other parameters: biases, peepholes, the head."""
    kernels: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    # Under whatever name: torch.compile adds to it.
    head = {id(parameter) for parameter in network.get_submodule("head").parameters()}
    for name, parameter in network.named_parameters():
        kernel = parameter.ndim == 4 and "weight" in name and id(parameter) not in head
        (kernels if kernel else others).append(parameter)
    return kernels, others
