"""Measures a trained predictor on Moving MNIST, and draws what docs/results.md shows.

    python benchmarks/results.py --model moving-mnist --root data --out docs/results

It writes results.md (a table that includes kinds of clips that the model was not trained on),
lead_time.png, and the clips forecast best, middling and worst as film strips and GIFs, the worst in
larger frames, and a forecast of 50 frames.
With --run RUN also learning.png, from the logs of the training; of several RUNs that each started
from the weights of the one before, behind one another.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from convlstm import VideoPredictor, save_gif, save_strip
from convlstm.files import replacing
from convlstm.metrics import METRICS, frame_metrics
from datamodules import MovingMNISTDataModule

# What is tested, and how it differs from what the model was trained on.
SETTINGS: dict[str, dict[str, Any]] = {
    "two digits, 64×64": {},
    "one digit": {"num_digits": 1},
    "three digits": {"num_digits": 3},
    "two digits, 96×96": {"frame_size": 96},
    (LARGE := "two digits, 128×128"): {"frame_size": 128},
}
LONG = 50  # frames
MSE, SSIM = METRICS.index("mse"), METRICS.index("ssim")
Scores = dict[str, tuple[Tensor, Tensor]]  # of model and last frame, each (clips, steps, metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="moving-mnist", help="name of bundled weights, or a file of weights"
    )
    parser.add_argument("--root", default="data", help="folder of the digit images")
    parser.add_argument("--digits", default="mnist", help="mnist, fashion_mnist, kmnist, builtin")
    parser.add_argument("--clips", type=int, default=1000, help="test clips of each setting")
    parser.add_argument(
        "--run", type=Path, nargs="+", help="directory of the training run, or of each in turn"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()

    model = VideoPredictor.from_pretrained(args.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if args.run is not None:
        plot_learning(args.run, args.out / "learning.png")
    scores: Scores = {}
    for name, options in SETTINGS.items():
        data = test_data(args, **options)
        scores[name] = score(model, data, name)
    plot_lead_times(scores, args.out / "lead_time.png")
    with replacing(args.out / "results.md") as temporary:
        temporary.write_text(table(scores), encoding="utf-8")
    print(table(scores))

    large = scores[LARGE][0][:, :, MSE].mean(1).argmax()
    draw(model, test_data(args, **SETTINGS[LARGE]), int(large), args.out / "large")
    errors = scores["two digits, 64×64"][0][:, :, MSE].mean(1)
    order = errors.argsort().tolist()
    for name, number in (
        ("best", order[0]),
        ("middling", order[len(order) // 2]),
        ("worst", order[-1]),
    ):
        draw(model, test_data(args), number, args.out / name)
        print(f"{name}: test clip {number}, MSE {errors[number]:.1f}")
    draw(model, test_data(args, target_length=LONG), 0, args.out / "long")


def test_data(args: argparse.Namespace, **options: Any) -> MovingMNISTDataModule:
    """The test split, ready."""
    data = MovingMNISTDataModule(
        root=args.root, digits=args.digits, test_size=args.clips, batch_size=50, **options
    )
    data.prepare_data()
    data.setup("test")
    return data


def clips(data: MovingMNISTDataModule) -> Iterator[tuple[Tensor, Tensor]]:
    """Context and truth of each batch, (B, T, C, H, W) in [0, 1]."""
    for batch in data.test_dataloader():
        yield batch["context"] / 255, batch["target"] / 255


@torch.no_grad()
def score(model: VideoPredictor, data: MovingMNISTDataModule, name: str) -> tuple[Tensor, Tensor]:
    """Metrics of the model and of repeating the last frame, each (clips, steps, metrics)."""
    ours, theirs = [], []
    for frames in track(clips(data), name, total=-(-data.test_size // data.batch_size)):
        context, truth = (part.to(model.device) for part in frames)
        ours.append(frame_metrics(model(context, truth.shape[1]), truth))
        theirs.append(frame_metrics(context[:, -1:].expand_as(truth), truth))
    return torch.cat(ours).cpu(), torch.cat(theirs).cpu()


def table(scores: Scores) -> str:
    """Markdown: means, and whether the model is better than the last frame at every lead time."""
    lines = [
        "| clips | MSE | of the last frame | MSE at +1 | +5 | +10 | SSIM | better at all leads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (model, last) in scores.items():
        curve, still = model[:, :, MSE].mean(0), last[:, :, MSE].mean(0)
        middle, end = (len(curve) + 1) // 2 - 1, len(curve) - 1
        leads = " | ".join(f"{curve[lead]:.1f}" for lead in (0, middle, end))
        better = "yes" if bool((curve < still).all()) else "no"
        lines.append(
            f"| {name} | {curve.mean():.2f} | {still.mean():.2f} | {leads} | "
            f"{model[:, :, SSIM].mean():.4f} | {better} |"
        )
    return "\n".join(lines) + "\n"


def plot_lead_times(scores: Scores, path: Path) -> None:
    """MSE against lead time, of the model (solid) and of the last frame (dashed)."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for number, (name, pair) in enumerate(scores.items()):
        for values, style in zip(pair, ("-", "--"), strict=True):
            curve = values[:, :, MSE].mean(0)
            label = name if style == "-" else None
            axes.plot(range(1, len(curve) + 1), curve, style, color=f"C{number}", label=label)
    axes.plot([], [], "k--", label="repeating the last frame")
    axes.set_xlabel("lead time (frames)")
    axes.set_ylabel("MSE of a frame (sum)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, ncols=3, loc="outside upper center")
    save(figure, path)


def plot_learning(runs: Sequence[Path], path: Path) -> None:
    """The validation's MSE against training steps, a line a run."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    begin = 0
    for run in runs:
        events = EventAccumulator(str(run / "logs"))
        events.Reload()
        points = events.Scalars("val/mse")
        steps = [begin + point.step for point in points]
        axes.plot(steps, [point.value for point in points], color="#e8710a")
        if begin:
            axes.axvline(begin, color="gray", linewidth=0.8, linestyle=":")
        begin = steps[-1]
    axes.set_xlabel("training step")
    axes.set_ylabel("MSE of a frame, validation")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def draw(model: VideoPredictor, data: MovingMNISTDataModule, number: int, stem: Path) -> None:
    """A test clip's forecast beside the truth, as film strip and GIF."""
    assert data.test_set is not None
    sample = data.test_set[number]
    forecast = model.forecast(sample["context"], len(sample["target"]))
    parts = sample["context"], forecast, sample["target"]
    save_strip(stem.with_suffix(".png"), *parts, columns=11)
    save_gif(stem.with_suffix(".gif"), *parts)


if __name__ == "__main__":
    main()
