"""The end of a test: the metrics beside those of repeating the last frame, and a plot."""

from pathlib import Path

import pytorch_lightning as pl
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from rich.table import Table
from torch import Tensor

from convlstm.console import plain_console
from convlstm.files import replacing, write_json
from convlstm.metrics import METRICS
from convlstm.module import VideoPredictor

LABELS = {
    "mse": "MSE",
    "mae": "MAE",
    "ssim": "SSIM",
    "ssim_range2": "SSIM (range 2)",
    "psnr": "PSNR (dB)",
}
CAPTION = (
    "MSE and MAE are summed over a frame. SSIM has data range 1; with range 2 it is what published "
    "Moving MNIST tables print."
)
Values = dict[str, Tensor]


class TestReport(Callback):
    """Prints the table, and writes `metrics.json` and `lead_time.png`.

    Args:
        directory: Where the two files go.
    """

    __test__ = False  # no test class, whatever pytest thinks of the name

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports, on the first process."""
        assert isinstance(pl_module, VideoPredictor)
        model, baseline = pl_module.test_metrics.summary(), pl_module.baseline_metrics.summary()
        if not trainer.is_global_zero:
            return
        console = plain_console()
        console.print(metrics_table(model, baseline))
        entropy = trainer.callback_metrics.get("test/cross_entropy")
        if entropy is not None:
            console.print(f"Cross-entropy of a sequence: {entropy:.2f} nats")
            model["cross_entropy"] = entropy
        (self.directory / "nowcasting.json").unlink(missing_ok=True)  # of an earlier test
        write_metrics(self.directory / "metrics.json", model, baseline)
        plot_lead_times(self.directory / "lead_time.png", model, baseline)
        console.print(f"Metrics and the lead-time curve: {self.directory}")


def metrics_table(model: Values, baseline: Values) -> Table:
    """Two rows for each metric; columns for the mean and the first, middle and last lead time."""
    steps = len(model["mse_by_lead_time"])
    leads = sorted({1, (steps + 1) // 2, steps})
    table = Table(title=f"Forecasts of {steps} frames", caption=CAPTION)
    table.add_column("metric")
    table.add_column("forecast by")
    for heading in ("mean", *(f"+{lead}" for lead in leads)):
        table.add_column(heading, justify="right")
    for name in METRICS:
        digits = 4 if name.startswith("ssim") else 2
        for label, values, style in (
            (LABELS[name], model, "bold"),
            ("", baseline, "dim"),
        ):
            curve = values[f"{name}_by_lead_time"]
            numbers = [values[name], *(curve[lead - 1] for lead in leads)]
            cells = [f"{number.item():.{digits}f}" for number in numbers]
            table.add_row(label, "the model" if label else "the last frame", *cells, style=style)
    return table


def write_metrics(path: Path, model: Values, baseline: Values) -> None:
    """Writes all metrics, their means and by lead time, as JSON; null if NaN or infinite."""
    content = {
        name: {metric: value.tolist() for metric, value in values.items()}
        for name, values in (("model", model), ("last_frame", baseline))
    }
    write_json(path, content)


def plot_lead_times(path: Path, model: Values, baseline: Values) -> None:
    """Writes a PNG with MSE and SSIM against lead time, of the model and of the last frame."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("mse", "ssim"), strict=True):
        leads = range(1, len(model[f"{name}_by_lead_time"]) + 1)
        for values, label, style in (
            (model, "model", {"color": "#e8710a", "marker": "o"}),
            (baseline, "repeating the last frame", {"color": "#7a7a7a", "linestyle": "--"}),
        ):
            axes.plot(leads, values[f"{name}_by_lead_time"], label=label, **style)
        axes.set_xlabel("lead time (frames)")
        axes.set_title(f"{LABELS[name]} of a frame", fontsize=10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    figure.axes[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
