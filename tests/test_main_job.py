"""What the README promises, as a user does it: in fresh processes."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import yaml
from clip_files import moving, write_folder, write_gif, write_video

from convlstm.cli import demo

ROOT = Path(__file__).parent.parent
FOOTAGE = (ROOT / "docs" / "footage.md").read_text(encoding="utf-8")
FORECASTING = (ROOT / "docs" / "forecasting.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BASE = ROOT / "configs" / "moving_mnist.yaml"  # what an overlay, which has no data, is laid over
# A run's end to end check needs no good model.
SMALL = [
    *("--data.batch_size", "2", "--model.hidden_sizes", "[2, 2]", "--trainer.max_steps", "2"),
    *("--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"),
    *("--cuda_graph", "false"),
]
QUICK = ["--data.digits", "builtin", "--data.test_size", "6", "--data.val_size", "2", *SMALL]
pytestmark = pytest.mark.slow


def convlstm(*words, cwd, check=True):
    return subprocess.run(
        [sys.executable, "-m", "convlstm", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=check,
        env={**os.environ, "COLUMNS": "200"},
    )


def make_videos(folder):
    """Three clips, one for each split, and in each of them six windows of 20 frames."""
    folder.mkdir()
    for number, name in enumerate(("a.gif", "b.gif")):
        write_gif(folder / name, moving(120, seed=number))
    write_video(folder / "c.mp4", moving(120, 48, 64), "libx264", "yuv420p")


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_trains_tests_and_predicts_in_fresh_processes(config, tmp_path):
    whole = "class_path" in yaml.safe_load(config.read_text()).get("data", {})
    layers = [config] if whole else [BASE, config]
    words = [word for layer in layers for word in ("-c", str(layer))]
    run = f"runs/{config.stem}"
    quick = QUICK
    if config.stem == "clips":
        make_videos(tmp_path / "videos")
        quick = [*SMALL, "--data.channels", "1", "--model.channels", "1"]
    convlstm("fit", *words, "--run_dir", run, *quick, cwd=tmp_path)
    tested = convlstm("test", "-c", f"{run}/config.yaml", "--save_forecasts", "out", cwd=tmp_path)
    assert "the last frame" in tested.stdout
    metrics = json.loads((tmp_path / run / "test" / "metrics.json").read_text())
    steps = len(metrics["model"]["mse_by_lead_time"])
    assert len(list((tmp_path / "out").glob("*.gif"))) == 6
    clip = iio.imread(tmp_path / "out" / "00000.gif")[..., 0]
    np.save(tmp_path / "clip.npy", clip)
    words = ["--ckpt_path", f"{run}/checkpoints/best.ckpt", "--steps", "4"]
    convlstm("predict", "clip.npy", "out/00000.gif", *words, cwd=tmp_path)
    for name in ("clip", "00000"):  # a picture of a forecast has colours, the model is gray
        frames = np.load(tmp_path / "forecasts" / f"{name}.npy")
        assert frames.shape == (4, 1, *clip.shape[1:])
    assert steps >= 1


def test_the_readmes_commands_run(tmp_path):
    """All but the set-up; shortened by options that come last and so win."""
    commands = [
        shlex.split(line, comments=True)[1:]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("convlstm ")
    ]
    for name in ("configs", "convlstm"):
        (tmp_path / name).symlink_to(ROOT / name)
    make_videos(tmp_path / "videos")
    rng = np.random.default_rng(0)
    iio.imwrite(tmp_path / "clip.gif", rng.integers(0, 256, (12, 64, 64), dtype=np.uint8))
    verbs = []
    for verb, *words in commands:
        clips = any("clips" in word for word in words)
        extra = {"fit": SMALL if clips else QUICK, "test": ["--num_forecasts", "3"]}.get(verb, [])
        if "--start_from" in words:  # whose network is not to be changed
            at = extra.index("--model.hidden_sizes")
            extra = extra[:at] + extra[at + 2 :]
        convlstm(verb, *words, *extra, cwd=tmp_path)
        verbs.append(verb)
    expected = "fit test fit fit fit fit fit test fit predict predict export"
    assert " ".join(verbs) == expected
    for run in ("moving_mnist", "clips"):
        assert len(list((tmp_path / "forecasts" / run).iterdir())) == 6
    assert len(iio.imread(tmp_path / "forecasts" / "moving-mnist-1.gif")) == 30

    compared = {path.name for path in (tmp_path / "compared").iterdir()}
    assert compared == {"clip.gif", "clip.png", "clip.json"}

    (training,) = blocks("python", TRAINING)
    short = training.replace("max_steps=1000", "max_steps=2")
    for code in [*blocks("python"), *blocks("python", FORECASTING), short]:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert len(iio.imread(tmp_path / "forecast.gif")) == 30


def test_the_page_on_footage_runs_on_a_clip_in_the_place_of_its_own(tmp_path):
    """The real one is not ours to bring; this one lies where the page says that it does."""
    (compare,) = blocks("python", FOOTAGE)
    lines = [line for block in blocks("bash", FOOTAGE) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("convlstm ")]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    clip = tmp_path / re.search(r'clip = "(.+)"', compare)[1]
    clip.parent.mkdir(parents=True)
    write_folder(clip, moving(200)[..., 2], ".pgm")
    for verb, *words in commands:
        convlstm(verb, *words, *(SMALL if verb == "fit" else []), cwd=tmp_path)
    assert [verb for verb, *_ in commands] == ["fit", "test", "predict"]
    assert (tmp_path / "forecasts" / "footage" / "00000.gif").exists()
    assert np.load(tmp_path / "forecasts" / f"{clip.name}.npy").shape == (20, 1, 64, 64)
    subprocess.run([sys.executable, "-c", compare], cwd=tmp_path, check=True)


def test_the_readmes_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), target
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE)
    helped = subprocess.run(
        ["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True
    ).stdout
    for target in targets:
        assert f"make {target} " in helped


@pytest.mark.parametrize("step", [2, 4])  # in the middle, and in the last validation
def test_the_demo_goes_on_where_it_stopped_and_ends_in_pictures(tmp_path, monkeypatch, capfd, step):
    """The demo's path with few steps; `make demo` itself is what shows that it learns."""
    monkeypatch.chdir(tmp_path)
    short = {**demo.OPTIONS, "data.val_size": 2, "data.test_size": 4, "data.batch_size": 2}
    short.update({"trainer.max_steps": 4, "trainer.val_check_interval": 2})
    monkeypatch.setattr(demo, "OPTIONS", short)
    monkeypatch.setattr(demo, "STEPS", 4)

    first = [word for key, value in short.items() for word in (f"--{key}", str(value))]
    first += ["--run_dir", "demo", "--trainer.limit_val_batches", "1"]
    code = (  # stopped as by Ctrl-C when a validation begins
        "import sys, pytorch_lightning as pl\n"
        "from convlstm.callbacks import LastCheckpoint\n"
        "save = LastCheckpoint.on_validation_start\n"
        "def stop(self, trainer, module):\n"
        "    save(self, trainer, module)\n"
        f"    if trainer.global_step == {step}: sys.exit(3)\n"
        "LastCheckpoint.on_validation_start = stop\n"
        "from convlstm.cli import main\n"
        "main(['fit', *sys.argv[1:]])\n"
    )
    stopped = subprocess.run([sys.executable, "-c", code, *first], check=False)
    assert stopped.returncode == 3
    (tmp_path / "demo" / ".demo").touch()  # what the demo writes before it trains
    assert demo.run([]) == 0
    printed = capfd.readouterr().out
    assert "the last frame" in printed
    assert (tmp_path / "demo" / "checkpoints" / "best.ckpt").exists()
    assert f"Resuming from step {step}" in printed
    for name in re.findall(r"  (demo/\S+)", printed):
        assert (tmp_path / name).exists(), name
    assert len(list((tmp_path / "demo" / "forecasts").glob("*.gif"))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"demo"}
    # A finished demo is shown again without training.
    trained = (tmp_path / "demo" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert demo.run([]) == 0
    assert (tmp_path / "demo" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == trained
