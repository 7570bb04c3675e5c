"""How good forecasts of events are, such as rain above a threshold: CSI, POD, FAR, HSS and FSS.

An event is a pixel at or above a threshold. Over all pixels of many frames, with h hits, m misses
(events that were not forecast), f false alarms and c correct rejections (D. Wilks, "Statistical
Methods in the Atmospheric Sciences", chapter on forecast verification):

    CSI = h / (h + m + f)          critical success index, also "threat score"
    POD = h / (h + m)              probability of detection
    FAR = f / (h + f)              false alarm ratio: the smaller, the better
    HSS = 2 (h·c - m·f) / ((h + m)(m + c) + (h + f)(f + c))     Heidke skill score

The fractions skill score forgives events that are forecast a little beside their place (N. Roberts
and H. Lean 2008, https://doi.org/10.1175/2007MWR2123.1): with P, of the forecast and of the truth,
the fraction of events in the n×n window around each pixel (outside of the frame there are none),

    FSS(n) = 1 - Σ (P_forecast - P_truth)² / (Σ P_forecast² + Σ P_truth²)

A score whose denominator is 0, as where nothing happened and nothing was forecast, is NaN.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from convlstm.pixels import check_pair

SCORES = ("csi", "pod", "far", "hss")


class NowcastingScores(Metric):
    """Scores of events, over all pixels and sequences, on any number of processes.

    Args:
        thresholds: Pixel values from which on there is an event, each above 0, at most 1.
        windows: Sides of the windows of the fractions skill score in pixels, odd.

    Raises:
        ValueError: There is no threshold, or one of these is out of range.
    """

    full_state_update = False
    counts: list[Tensor]
    fractions: list[Tensor]

    def __init__(self, thresholds: Sequence[float], windows: Sequence[int] = ()) -> None:
        super().__init__()
        thresholds, windows = tuple(thresholds), tuple(windows)
        if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
            raise ValueError(
                f"thresholds must be above 0 and at most 1, at least one, got {list(thresholds)}"
            )
        if not all(isinstance(n, int) and n >= 1 and n % 2 for n in windows):
            raise ValueError(f"windows must be odd numbers from 1, got {list(windows)}")
        self.thresholds = thresholds
        self.windows = windows
        self.add_state("counts", default=[], dist_reduce_fx="cat")
        self.add_state("fractions", default=[], dist_reduce_fx="cat")

    def update(self, forecast: Tensor, truth: Tensor) -> None:
        """Adds a batch of forecasts.

        Args:
            forecast: (B, T, C, H, W), floats, of which NaN is no event; T must not change between
                batches.
            truth: The same shape, floats in [0, 1].

        Raises:
            ValueError: The shapes differ, or the pixels are integers.
        """
        check_pair(forecast, truth)
        counts, fractions = [], []
        for threshold in self.thresholds:
            ours, theirs = forecast >= threshold, truth >= threshold
            cells = ours & theirs, ~ours & theirs, ours & ~theirs, ~ours & ~theirs
            counts.append(torch.stack([cell.sum((0, 2, 3, 4)) for cell in cells], dim=-1))
            fractions.append(self._squares(ours.float(), theirs.float()))
        self.counts.append(torch.stack(counts, dim=1)[None])
        self.fractions.append(torch.stack(fractions, dim=1)[None])

    def _squares(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Numerators and denominators of the fractions skill score, (T, windows, 2)."""
        result = ours.new_empty(ours.shape[1], len(self.windows), 2)
        for i, window in enumerate(self.windows):
            a, b = _fractions(ours, window), _fractions(theirs, window)
            result[:, i, 0] = (a - b).square().sum((0, 2, 3, 4))
            result[:, i, 1] = (a.square() + b.square()).sum((0, 2, 3, 4))
        return result

    def compute(self) -> dict[str, Tensor]:
        """The scores so far.

        Returns:
            `csi`, `pod`, `far`, `hss`, and `fss_n` for each window n, each (1 + T, thresholds),
            float64 on the CPU: in row 0 over all frames, in row t over those of lead time t.
        """
        parts = (s if isinstance(s, list) else [s] for s in (self.counts, self.fractions))
        counts, fractions = (torch.cat(part).cpu().double().sum(0) for part in parts)
        counts = torch.cat([counts.sum(0, keepdim=True), counts])  # (1 + T, thresholds, 4)
        fractions = torch.cat([fractions.sum(0, keepdim=True), fractions])
        h, m, f, c = counts.unbind(-1)
        chance = (h + m) * (m + c) + (h + f) * (f + c)
        values = h / (h + m + f), h / (h + m), f / (h + f), 2 * (h * c - m * f) / chance
        scores = dict(zip(SCORES, values, strict=True))
        for i, window in enumerate(self.windows):
            apart, together = fractions[:, :, i].unbind(-1)
            scores[f"fss_{window}"] = 1 - apart / together
        return scores


def _fractions(events: Tensor, window: int) -> Tensor:
    """The mean of the window around each pixel, in two passes."""
    half = window // 2
    flat = F.avg_pool2d(events.flatten(0, 1), (window, 1), stride=1, padding=(half, 0))
    return F.avg_pool2d(flat, (1, window), 1, padding=(0, half)).unflatten(0, events.shape[:2])
