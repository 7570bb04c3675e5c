import pytest
import torch

from convlstm.losses import LOSSES


def test_losses_are_means_over_every_pixel():
    forecast = torch.tensor([0.0, 0.5, 1.0, 0.25])
    truth = torch.tensor([0.0, 1.0, 0.0, 0.25])
    assert LOSSES["mse"](forecast, truth).item() == pytest.approx((0.25 + 1) / 4)
    assert LOSSES["mae"](forecast, truth).item() == pytest.approx((0.5 + 1) / 4)
    assert LOSSES["mse+mae"](forecast, truth).item() == pytest.approx((0.75 + 2) / 4)


def test_cross_entropy_is_the_papers_taken_from_logits():
    p, t = torch.tensor([0.1, 0.6, 0.9]), torch.tensor([0.0, 0.3, 1.0])
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    torch.testing.assert_close(LOSSES["cross_entropy"](torch.logit(p), t), expected)
