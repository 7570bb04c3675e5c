"""`convlstm demo`: the whole way from data to pictures on a small problem, within minutes."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from convlstm.checkpoint import read_checkpoint
from convlstm.cli import predict, train
from convlstm.cli.parser import OneLineErrors
from convlstm.console import plain_console
from convlstm.files import replacing
from convlstm.pretrained import example_clips

PRETRAINED = "moving-mnist"
STEPS = 1200
TEST_CLIPS = 500
PICTURES = 8
# One digit on a small frame: what a CPU can learn in minutes.
OPTIONS = {
    "data": "MovingMNISTDataModule",
    "data.digits": "builtin",
    "data.num_digits": 1,
    "data.frame_size": 40,
    "data.speed": 2.5,
    "data.context_length": 5,
    "data.target_length": 5,
    "data.val_size": 64,
    "data.test_size": TEST_CLIPS,
    "model.hidden_sizes": "[32, 32]",
    "model.optimizer": "muon",
    "model.learning_rate": 0.015,
    "model.warmup": 0.2,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": STEPS,
    "trainer.val_check_interval": STEPS // 4,
    "trainer.check_val_every_n_epoch": "null",
    "trainer.gradient_clip_val": 1.0,
}


class DemoParser(OneLineErrors, ArgumentParser):
    """The parser of `convlstm demo`."""

    command = "convlstm demo"


def run(args: Sequence[str]) -> int:
    """Forecasts with the bundled weights, trains, tests anew, and says where to look."""
    parser = DemoParser(
        prog="convlstm demo",
        description="Forecast clips with the bundled weights. Then train a small model on bouncing "
        "digits, load its checkpoint in a new process, compare its forecasts of unseen clips with "
        "repeating the last frame, and write the forecasts as images. Takes a few minutes on two "
        "CPU cores and needs no data. An interrupted demo resumes where it stopped.",
    )
    parser.add_argument("--out", type=str, default="demo", help="Output folder.")
    out = Path(parser.parse_args(list(args)).out)
    console = plain_console()
    last = out / "checkpoints" / "last.ckpt"
    marker = out / ".demo"
    if last.exists() and not marker.exists():
        raise ValueError(f"{out} holds a run that is not the demo's: choose another --out")
    finished = last.exists() and "finished_epochs" in read_checkpoint(last)
    with replacing(marker) as temporary:
        temporary.write_text("This folder is a demo's.\n", encoding="utf-8")

    console.rule("1/3 Forecasting clips of two digits with the bundled weights")
    clips = [str(path) for path in example_clips(PRETRAINED)[:2]]
    words = ["--pretrained", PRETRAINED, "--compare", "--format", "gif", "png"]
    status = predict.run([*clips, *words, "--out", str(out / "pretrained")])
    if status:
        return status
    if not finished:
        console.rule("2/3 Training a small model on bouncing digits")
        words = [word for key, value in OPTIONS.items() for word in (f"--{key}", str(value))]
        words += ["--run_dir", str(out)]
        train.run("fit", [*words, "--resume"])
    else:
        console.print(f"{out} holds a finished demo: delete the folder to train it again")
    console.rule(f"3/3 Forecasting {TEST_CLIPS} clips it has not seen, in a new process")
    command = [sys.executable, "-m", "convlstm", "test", "-c", str(out / "config.yaml")]
    command += ["--save_forecasts", str(out / "forecasts"), "--num_forecasts", str(PICTURES)]
    status = subprocess.run(command, check=False).returncode
    if status:
        return status
    console.rule("Look at")
    for name, what in (
        (f"pretrained/{PRETRAINED}-1.gif", "a forecast by the bundled weights"),
        (f"pretrained/{PRETRAINED}-2.png", "another one, as a film strip"),
        ("forecasts/00000.gif", "a forecast by the model just trained: truth left, forecast right"),
        ("forecasts/00000.png", "the same as a film strip; 00001, 00002, … are more clips"),
        ("test/lead_time.png", "how the error grows with the lead time"),
        ("checkpoints/best.ckpt", "the model: convlstm predict CLIP --ckpt_path …"),
    ):
        console.print(f"  {out / name}  {what}")
    return 0
