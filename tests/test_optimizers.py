"""Muon against torch's own, which takes matrices alone, and AdamW for the rest."""

import numpy as np
import pytest
import torch

import convlstm.muon
from convlstm import EncoderForecaster
from convlstm.optimizers import build_optimizer, split_parameters


def network(**options):
    torch.manual_seed(0)
    return EncoderForecaster(
        1, patch_size=2, hidden_sizes=[4, 6], downsample=[1, 2], head_size=5, **options
    )


def test_kernels_but_the_heads_are_muons():
    built = network(peephole="channel")
    names = {id(p): name for name, p in built.named_parameters()}
    kernels, others = ({names[id(p)] for p in part} for part in split_parameters(built))
    assert kernels == {
        *("encoder.0.weight_ih_l0", "encoder.0.weight_hh_l0", "encoder_down.1.0.weight"),
        *("encoder.1.weight_ih_l0", "encoder.1.weight_hh_l0", "forecaster.1.weight_hh_l0"),
        *("forecaster_up.0.0.weight", "forecaster.0.weight_ih_l0", "forecaster.0.weight_hh_l0"),
        "neck.0.weight",
    }
    assert kernels | others == set(names.values())
    assert others >= {"head.weight", "encoder.0.peephole_l0", "encoder.0.bias_l0", "neck.0.bias"}
    assert not kernels & others


def test_a_head_of_several_modules_is_not_muons_either():
    built = network()
    built.head = torch.nn.Sequential(torch.nn.Conv2d(5, 6, 3), built.head)
    _, others = split_parameters(built)
    assert {id(p) for p in built.head.parameters()} <= {id(p) for p in others}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch 2.11
def test_the_head_of_a_compiled_network_is_not_muons_either():
    built = network()
    kernels, others = split_parameters(torch.compile(built))
    expected, rest = split_parameters(built)
    assert [id(p) for p in (*kernels, *others)] == [id(p) for p in (*expected, *rest)]


def test_muon_steps_as_torchs_own_does_and_adamw_beside_it():
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, "muon", 0.01, weight_decay=0.1)
    kernels, others = split_parameters(theirs)
    flat = [torch.nn.Parameter(p.detach().flatten(1).clone()) for p in kernels]
    muon = torch.optim.Muon(
        flat, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=0.01, weight_decay=0)
    start = [p.detach().clone() for p in flat]
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for matrix, kernel in zip(flat, kernels, strict=True):
            matrix.grad = kernel.grad.flatten(1)
        for each in (optimizer, muon, adamw):
            each.step()
    mine, rest = split_parameters(ours)
    for one, matrix, first in zip(mine, flat, start, strict=True):
        step = (matrix - first).norm()
        # Torch computes in bfloat16.
        assert (one.flatten(1) - matrix).norm() < 0.03 * step, one.shape
        assert step > 0
    for one, other in zip(rest, others, strict=True):
        torch.testing.assert_close(one, other)


def test_without_bfloat16_instructions_muon_orthogonalizes_in_float32(monkeypatch):
    """Against the iteration of K. Jordan et al. 2024 in NumPy's float64."""
    monkeypatch.setattr(convlstm.muon, "has_bfloat16", lambda: False)
    built = network()
    optimizer = build_optimizer(built, "muon", 0.01, 0.0)
    kernels, _ = split_parameters(built)
    for parameter in built.parameters():
        parameter.grad = torch.randn_like(parameter)
    expected = []
    for kernel in kernels:
        x = kernel.grad.flatten(1).double().numpy()
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        step = 0.01 * 0.2 * max(x.shape) ** 0.5 * torch.from_numpy(x)
        expected.append((kernel.detach().flatten(1).double() - step).float())
    optimizer.step()
    for kernel, matrix in zip(kernels, expected, strict=True):
        torch.testing.assert_close(kernel.detach().flatten(1), matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_a_parameter_without_a_gradient_stays(name):
    built = network()
    optimizer = build_optimizer(built, name, 0.01, 0.0)
    before = [p.detach().clone() for p in built.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, built.parameters(), strict=True))
