"""The end of a test, for forecasts of events: their scores beside those of the last frame."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.table import Table
from torch import Tensor

from convlstm.console import plain_console
from convlstm.files import write_json
from convlstm.nowcasting import NowcastingScores
from convlstm.pixels import to_unit

CAPTION = (
    "Events are pixels at or above the threshold. Lower FAR is better; of the others, higher is. "
    "FSS n is of windows of n by n pixels. nan: no event to score."
)


class NowcastingReport(Callback):
    """Prints `NowcastingScores` of the test, and writes `nowcasting.json`.

    Args:
        directory: Where the file goes.
        thresholds: See `NowcastingScores`.
        windows: Likewise.

    Raises:
        ValueError: There is no threshold, or one of these is out of range.
    """

    def __init__(
        self, directory: Path, thresholds: Sequence[float], windows: Sequence[int]
    ) -> None:
        self.directory = directory
        self.model = NowcastingScores(thresholds, windows)
        self.baseline = NowcastingScores(thresholds, windows)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets what an earlier test has added up."""
        self.model.reset()
        self.baseline.reset()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        target = to_unit(batch["target"])
        self.model.update(outputs, target)
        self.baseline.update(to_unit(batch["context"][:, -1:]).expand_as(target), target)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports, on the first process."""
        model, baseline = self.model.compute(), self.baseline.compute()
        if not trainer.is_global_zero:
            return
        console = plain_console()
        console.print(scores_table(self.model.thresholds, model, baseline))
        content = {
            "thresholds": self.model.thresholds,
            "model": _by_name(model),
            "last_frame": _by_name(baseline),
        }
        path = self.directory / "nowcasting.json"
        write_json(path, content)
        console.print(f"Scores by lead time: {path}")


def scores_table(
    thresholds: Sequence[float], model: dict[str, Tensor], baseline: dict[str, Tensor]
) -> Table:
    """Two rows for each score and threshold; columns for all, first, middle and last lead time."""
    steps = len(model["csi"]) - 1
    rows = sorted({0, 1, (steps + 1) // 2, steps})
    table = Table(title="Events", caption=CAPTION)
    for heading in ("threshold", "score", "forecast by"):
        table.add_column(heading)
    for row in rows:
        table.add_column(f"+{row}" if row else "all", justify="right")
    for k, threshold in enumerate(thresholds):
        for i, name in enumerate(model):
            label = name.upper().replace("_", " ")
            for by, values in (("the model", model), ("the last frame", baseline)):
                first = by == "the model"
                cells = [f"{threshold:g}" if first and i == 0 else "", label if first else "", by]
                cells += [f"{values[name][row, k].item():.4f}" for row in rows]
                table.add_row(*cells, style="bold" if first else "dim")
    return table


def _by_name(scores: dict[str, Tensor]) -> dict[str, list[Any]]:
    """Scores as lists: an entry a threshold, of all frames and by lead time."""
    result: dict[str, list[Any]] = {}
    for name, values in scores.items():  # (1 + T, thresholds)
        result[name] = values[0].tolist()
        result[f"{name}_by_lead_time"] = values[1:].T.tolist()
    return result
