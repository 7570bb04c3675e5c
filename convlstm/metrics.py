"""How good forecasts are: MSE, MAE, SSIM and PSNR as the published Moving MNIST tables have them.

MSE and MAE are taken on the forecast as it is (not clipped) and *summed* over channels, height and
width; SSIM and PSNR on the forecast clipped to [0, 1]. All are taken frame by frame and averaged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from convlstm.pixels import check_pair

METRICS = ("mse", "mae", "ssim", "ssim_range2", "psnr")


class ForecastMetrics(Metric):
    """Averages `frame_metrics` over sequences and frames, on any number of processes.

    A perfect frame has infinite PSNR: such frames are left out of PSNR's means (which are infinite
    only when no other frame is left). Frames smaller than 7×7 have no SSIM: NaN.
    """

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, forecast: Tensor, truth: Tensor) -> None:
        """Adds a batch of forecasts.

        Args:
            forecast: Frames (B, T, C, H, W), floats; T must not change between batches.
            truth: Those that follow in truth, of the same shape, in [0, 1].

        Raises:
            ValueError: As `frame_metrics`.
        """
        self.values.append(frame_metrics(forecast, truth))

    def compute(self) -> Tensor:
        """The means so far.

        Returns:
            (1 + T, 5), float64 on the CPU, columns in the order of `METRICS`: in row 0 over all
            frames, in row t over the frames of lead time t.
        """
        values = self.values if isinstance(self.values, list) else [self.values]
        table = torch.cat(values).cpu().double()  # (N, T, metrics)
        frames = table.flatten(0, 1)
        means = torch.cat([frames.mean(0)[None], table.mean(0)])
        psnr = METRICS.index("psnr")
        means[0, psnr] = _finite_mean(frames[:, psnr])
        means[1:, psnr] = _finite_mean(table[..., psnr])
        return means

    def summary(self) -> dict[str, Tensor]:
        """`compute()` by name: `mse` the mean, `mse_by_lead_time` (T,), and so on."""
        means, *by_lead_time = self.compute()
        result = dict(zip(METRICS, means, strict=True))
        curves = torch.stack(by_lead_time, dim=1)
        result.update(zip([f"{name}_by_lead_time" for name in METRICS], curves, strict=True))
        return result


def frame_metrics(forecast: Tensor, truth: Tensor) -> Tensor:
    """All metrics of each frame.

    Args:
        forecast: (B, T, C, H, W), floats, not clipped.
        truth: The same shape, floats in [0, 1].

    Returns:
        (B, T, 5) in the order of `METRICS`:

        - mse, mae: squared and absolute error summed over C, H, W;
        - ssim: structural similarity with the data range 1.0 of the pixels;
        - ssim_range2: the same with data range 2.0, which reads higher: scikit-image's old default
          for floats, behind the published Moving MNIST tables;
        - psnr: 20·log10(1/√(mean squared error)) in dB; infinite for a perfect frame.

    Raises:
        ValueError: The shapes differ, or the pixels are integers.
    """
    check_pair(forecast, truth)
    forecast, truth = forecast.float(), truth.float()
    error = forecast - truth
    clipped = forecast.clamp(0, 1)
    psnr = -10 * torch.log10((clipped - truth).square().mean(dim=(2, 3, 4)))
    ssim1, ssim2 = ssim(clipped, truth, data_ranges=(1.0, 2.0))
    mse, mae = error.square().sum(dim=(2, 3, 4)), error.abs().sum(dim=(2, 3, 4))
    return torch.stack([mse, mae, ssim1, ssim2, psnr], dim=-1)


def cross_entropy(forecast: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy of forecasts that are probabilities, summed over all pixels of a sequence.

    -Σ t·log p + (1 - t)·log(1 - p), as the ConvLSTM paper reports it
    (https://arxiv.org/abs/1506.04214, section 4.1). A logarithm counts at most 100, so that one
    pixel forecast with certainty and wrongly does not make the sum infinite.

    Args:
        forecast: (B, T, C, H, W), floats in [0, 1].
        truth: The same shape, floats in [0, 1].

    Returns:
        (B,), in nats; NaN for a sequence with a NaN.

    Raises:
        ValueError: The shapes differ, or the pixels are integers.
    """
    check_pair(forecast, truth)
    # Not PyTorch's own, which raises on NaN, and under autocast on CUDA.
    forecast, truth = forecast.float(), truth.float()
    logarithms = forecast.log().clamp(min=-100), (-forecast).log1p().clamp(min=-100)
    each = truth * logarithms[0] + (1 - truth) * logarithms[1]
    return -each.sum(dim=(1, 2, 3, 4))


def ssim(x: Tensor, y: Tensor, data_ranges: tuple[float, ...] = (1.0,)) -> list[Tensor]:
    """Structural similarity with a uniform 7×7 window and the sample covariance.

    As scikit-image's `structural_similarity` computes it by default; windows that would leave the
    frame do not count. Source: Z. Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861.

    Args:
        x: (B, T, C, H, W).
        y: The same shape.
        data_ranges: Distances between the largest and the smallest possible value.

    Returns:
        (B, T) for each data range, mean over channels; NaN where H or W is below 7.

    Raises:
        ValueError: The shapes differ, or the pixels are integers.
    """
    check_pair(x, y)
    window = 7
    if min(x.shape[3:]) < window:
        return [x.new_full(x.shape[:2], torch.nan) for _ in data_ranges]

    def mean(values: Tensor) -> Tensor:  # a box filter in two passes
        flat = F.avg_pool2d(values.flatten(0, 1), (window, 1), stride=1)
        return F.avg_pool2d(flat, (1, window), stride=1).unflatten(0, values.shape[:2])

    # A variance is a difference of large sums; Apple's GPUs have no float64.
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    x, y = x.to(exact), y.to(exact)
    sample = window**2 / (window**2 - 1)
    mean_x, mean_y = mean(x), mean(y)
    var_x = sample * (mean(x * x) - mean_x * mean_x)
    var_y = sample * (mean(y * y) - mean_y * mean_y)
    cov = sample * (mean(x * y) - mean_x * mean_y)
    result = []
    for data_range in data_ranges:
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
            (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
        )
        result.append(similarity.mean(dim=(2, 3, 4)).float())
    return result


def _finite_mean(values: Tensor) -> Tensor:
    """Mean over the first axis without infinite values; infinite if there are no others.

    Of nothing at all it is NaN.
    """
    infinite = values.isinf()
    total = values.masked_fill(infinite, 0).sum(0)
    count = (~infinite).sum(0)
    return torch.where(
        count > 0, total / count.clamp(min=1), torch.inf if len(values) else torch.nan
    )
