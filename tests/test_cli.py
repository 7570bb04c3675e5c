"""The command in this process; `test_main_job.py` runs it as a user does."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.strategies import FSDPStrategy
from small_run import CONFIG, fails, files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import convlstm.cli
from convlstm import VideoPredictor
from convlstm.callbacks import ProgressBar, guard
from convlstm.cli import VERBS, main
from convlstm.cli.message import one_line
from convlstm.cli.processes import end_others
from convlstm.cli.train import VideoCLI

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


PRETRAINED = ["-c", "small.yaml", "--pretrained", "moving-mnist"]


EARLY = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/nothing"]


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    return "small.yaml"


def test_a_run_is_trained_tested_and_used(config, tmp_path, capsys):
    assert main(["fit", "-c", config]) == 0
    printed = capsys.readouterr().out
    assert "step 2 of 2: val/mse" in printed  # no terminal here
    assert "Best checkpoint: runs/small/checkpoints/best.ckpt" in printed
    run = tmp_path / "runs" / "small"
    kept = {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == kept
    assert (run / "logs").is_dir()
    written = yaml.safe_load((run / "config.yaml").read_text())
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2  # the last one, even where an earlier one is the best
    assert written["run_dir"] == "runs/small"
    assert written["model"]["context_length"] == 2  # from the data

    saved = ["--save_forecasts", "pictures", "--num_forecasts", "2", "--thresholds", "[0.2,0.9]"]
    assert main(["test", "-c", "runs/small/config.yaml", *saved]) == 0
    printed = capsys.readouterr().out
    assert "batch 1 of 3\nbatch 2 of 3\nbatch 3 of 3\n" in printed  # no terminal here, either
    assert "MSE" in printed
    assert "CSI" in printed
    assert "FSS 17" in printed
    files = {"metrics.json", "lead_time.png", "nowcasting.json"}
    assert {p.name for p in (run / "test").iterdir()} == files
    text = (run / "test" / "nowcasting.json").read_text()
    scores = json.loads(text, parse_constant=pytest.fail)
    assert scores["thresholds"] == [0.2, 0.9]
    for of in ("model", "last_frame"):
        assert np.shape(scores[of]["fss_5"]) == (2,)
        assert np.shape(scores[of]["csi_by_lead_time"]) == (2, 3)  # of three frames
    assert scores["last_frame"]["pod"][0] > 0
    assert main(["test", "-c", "runs/small/config.yaml"]) == 0
    assert {p.name for p in (run / "test").iterdir()} == files - {"nowcasting.json"}
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    assert main(["validate", "-c", config, "--ckpt_path", "last"]) == 0

    np.save("clip.npy", np.zeros((6, 1, 32, 32), dtype=np.uint8))
    best = ["--ckpt_path", "runs/small/checkpoints/best.ckpt"]
    assert main(["predict", "clip.npy", *best, "--steps", "7", "--out", "out"]) == 0
    assert np.load("out/clip.npy").shape == (7, 1, 32, 32)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"clip.gif", "clip.npy", "clip.png"}
    expected = {"small.yaml", "runs", "pictures", "clip.npy", "out"}
    assert {p.name for p in tmp_path.iterdir()} == expected

    # What is there is not written over.
    line = fails(capsys, 1, "fit", "-c", config)
    assert "runs/small already holds a run" in line
    assert "continue it with --resume" in line
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(["fit", "-c", config, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "is finished: runs/small/checkpoints/last.ckpt is its end, at step 2" in printed
    assert "--start_from runs/small/checkpoints/last.ckpt" in printed
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    # The recorded configuration repeats the run to the same weights.
    assert main(["fit", "-c", "runs/small/config.yaml", "--run_dir", "again"]) == 0
    first, second = (
        torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("runs/small", "again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks there")
def test_two_trainings_do_not_share_a_directory(config, tmp_path, capsys):
    code = (
        "import sys; from pathlib import Path; from convlstm.lock import claimed\n"
        "with claimed(Path('runs/small')):\n    print('mine', flush=True)\n    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout.readline() == b"mine\n"
        line = fails(capsys, 1, "fit", "-c", config)
        assert "another process is writing to runs/small" in line
        assert [path.name for path in (tmp_path / "runs" / "small").iterdir()] == [".lock"]
    assert main(["fit", "-c", config]) == 0


def test_what_standard_output_cannot_encode_is_escaped(config):
    command = [sys.executable, "-m", "convlstm", "fit", "-c", config, "--run_dir", "rüns"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Best checkpoint: r\\xfcns/checkpoints/best.ckpt" in done.stdout


def test_a_trial_run_writes_nothing_wherever_it_is(config, tmp_path, capsys):
    trial = ["fit", "-c", config, "--trainer.fast_dev_run", "true"]
    assert main(trial) == 0
    printed = capsys.readouterr().out
    assert "a trial that writes nothing" in printed
    assert "step 1 of 1: val/mse" in printed
    assert "ckpt" not in printed
    assert [path.name for path in tmp_path.iterdir()] == [config]
    assert main(["fit", "-c", config]) == 0  # nothing is in its way
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(trial) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_variant_without_a_configuration_before_it_is_one_line(config, tmp_path, capsys):
    Path("gru.yaml").write_text("model: {cell: gru}")
    line = fails(capsys, 2, "fit", "-c", "gru.yaml")
    assert "no data to train or test on: begin with a whole configuration" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches must be >= 1, got 0"),
        (["--trainer.check_val_every_n_epoch", "0"], "check_val_every_n_epoch must be >= 1, got 0"),
        (["--trainer.gradient_clip_val", ".nan"], "gradient_clip_val must be >= 0, got nan"),
        (["--data.batch_size", "20000"], "fewer than one step's 20000"),
        (["--model.hidden_sizes", f"[{2**70}]"], f"model.hidden_sizes is too large: [{2**70}]"),
        (["--data.val_size", str(2**70)], f"data.val_size is too large: {2**70}"),
        (["--trainer.max_steps", str(2**70)], f"trainer.max_steps is too large: {2**70}"),
        (["--data.root", ""], "data.root must not be empty"),
        (["--run_dir", ""], "run_dir must not be empty"),
        (["--start_from", ""], "start_from must not be empty"),
    ],
)
def test_what_would_fail_later_or_mean_something_else_is_refused_first(
    config, tmp_path, capsys, words, named
):
    line = fails(capsys, 1, "fit", "-c", config, *words)
    assert named in line
    assert [path.name for path in tmp_path.iterdir()] == [config]


@pytest.mark.parametrize(
    ("text", "status", "named"),
    [
        ("model: {head_size: null}", 1, "model.head_size must not be null"),
        ("model: {residual: null}", 1, "model.residual must not be null"),
        ("trainer: {overfit_batches: null}", 1, "trainer.overfit_batches must not be null"),
        ("trainer: {accumulate_grad_batches: null}", 1, "accumulate_grad_batches must not be null"),
        ("data: {}", 1, "data needs a class_path, such as MovingMNISTDataModule"),
        ("x: &x [*x]", 2, "no configuration: it contains itself"),
    ],
)
def test_a_value_that_only_files_can_have_is_refused(config, tmp_path, capsys, text, status, named):
    Path("wrong.yaml").write_text(text)
    before = [] if text == "data: {}" else ["-c", config]
    line = fails(capsys, status, "fit", *before, "-c", "wrong.yaml")
    assert named in line
    assert {path.name for path in tmp_path.iterdir()} == {config, "wrong.yaml"}


def test_a_checkpoint_of_another_network_is_one_line_whatever_is_done_with_it(
    config, tmp_path, capsys
):
    assert main(["fit", "-c", config]) == 0
    path = tmp_path / "runs/small/checkpoints/last.ckpt"
    whole = torch.load(path, weights_only=True)
    weights = dict(whole["state_dict"])
    weights["network.out.bias"] = weights.pop("network.head.bias")
    unknown = {**whole["hyper_parameters"], "future": 1}
    for content in ({"state_dict": weights}, {"hyper_parameters": unknown}):
        torch.save({**whole, **content}, path)
        before = files(tmp_path)
        for words in (
            ["test", "-c", config, "--ckpt_path", "last"],
            ["fit", "-c", config, "--resume", "--run_dir", "runs/small"],
            ["predict", "clip.npy", "--ckpt_path", str(path)],
            ["export", str(path), "shared.safetensors"],
        ):
            line = fails(capsys, 1, *words)
            assert "last.ckpt: weights and options differ" in line
        assert files(tmp_path) == before


def test_a_reader_that_has_gone_is_one_line_and_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "convlstm", "--help"]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == "convlstm: error: [Errno 32] Broken pipe\n"


@pytest.mark.slow
def test_a_training_goes_on_without_a_reader(config):
    words = [sys.executable, "-m", "convlstm", "fit", "-c", config]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as training:
        training.stdout.readline()
        training.stdout.close()
    assert training.returncode == 0
    last = torch.load("runs/small/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2


def test_the_demo_leaves_another_run_alone(config, tmp_path, capsys):
    main(["fit", "-c", config])
    before = (tmp_path / "runs/small/config.yaml").read_text()
    assert "not the demo's" in fails(capsys, 1, "demo", "--out", "runs/small")
    assert (tmp_path / "runs/small/config.yaml").read_text() == before


def test_a_run_keeps_the_length_that_its_learning_rate_was_planned_for(config, tmp_path, capsys):
    main(["fit", "-c", config])
    before = (tmp_path / "runs/small/config.yaml").read_text()
    words = ["fit", "-c", config, "--resume", "--trainer.max_steps", "3"]
    assert "planned for 2 steps" in fails(capsys, 1, *words)
    assert (tmp_path / "runs/small/config.yaml").read_text() == before


@pytest.mark.slow
def test_ctrl_c_in_a_training_saves_and_ends_with_130(config):
    words = ["fit", "-c", config, "--trainer.max_steps", "100000", "--model.hidden_sizes", "[32]"]
    with subprocess.Popen(
        [sys.executable, "-m", "convlstm", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("step 1 of"):
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip() == "Saving after this step, then stopping; Ctrl-C again stops at once"
    assert "continue with --resume" in output


def test_a_run_that_is_to_be_resumed_and_has_no_checkpoint_yet_begins(config, capsys):
    assert main(["fit", "-c", config, "--resume"]) == 0
    assert "Going on" not in capsys.readouterr().out


def test_a_training_without_validations_is_tested_with_its_last_weights(config, tmp_path, capsys):
    assert main(["fit", "-c", config, "--trainer.limit_val_batches", "0"]) == 0
    kept = {path.name for path in (tmp_path / "runs/small/checkpoints").iterdir()}
    assert kept == {"last.ckpt"}
    last = "runs/small/checkpoints/last.ckpt"
    printed = capsys.readouterr().out
    assert f"Checkpoint: {last} (step 2; no validation, so no best)" in printed
    assert "Test it: convlstm test -c runs/small/config.yaml" in printed
    assert main(["test", "-c", "runs/small/config.yaml"]) == 0
    assert f"Testing {last}\n" in capsys.readouterr().out

    best = "runs/small/checkpoints/best.ckpt"
    for words in (
        ["test", "-c", config, "--ckpt_path", "best"],
        ["test", "-c", config, "--ckpt_path", best],
        ["predict", "clip.gif", "--ckpt_path", best],
        ["export", best, "shared.safetensors"],
    ):
        (tmp_path / "clip.gif").touch()
        assert fails(capsys, 1, *words).endswith(f"no checkpoint at {best}, but there is {last}")


def test_a_callback_that_watches_what_is_not_there_is_one_line(config, capsys):
    words = ["fit", "-c", config, "--trainer.limit_val_batches", "1", *EARLY]
    assert "metric `val/nothing` which is not available" in fails(capsys, 1, *words)


def test_metrics_say_whose_they_are(config, capsys):
    for verb, doing in (("test", "Testing"), ("validate", "Validating")):
        assert main([verb, "-c", config, "--pretrained", "moving-mnist"]) == 0
        assert f"{doing} the weights moving-mnist\n" in capsys.readouterr().out


@pytest.mark.parametrize("root", ["nowhere", "empty"])
def test_data_that_is_not_there_leaves_no_run(config, tmp_path, capsys, root):
    (tmp_path / "empty").mkdir()
    clips = {"class_path": "ClipDataModule", "init_args": {"root": root, "channels": 1}}
    (tmp_path / "clips.yaml").write_text(yaml.safe_dump({**CONFIG, "data": clips}))
    before = set(tmp_path.rglob("*"))
    assert root in fails(capsys, 1, "fit", "-c", "clips.yaml")
    assert capsys.readouterr().out == ""
    assert set(tmp_path.rglob("*")) == before


def test_the_progress_bar_counts_each_epoch_to_its_end_after_a_resume_too(config, monkeypatch):
    shown = []
    original = ProgressBar.on_train_batch_end

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        original(self, trainer, pl_module, outputs, batch, batch_idx)
        (task,) = (t for t in self.progress.tasks if t.id == self.train_progress_bar_id)
        shown.append((task.completed, task.total))

    monkeypatch.setattr(ProgressBar, "on_train_batch_end", on_train_batch_end)
    words = ["fit", "-c", config, "--data.train_size", "12", "--trainer.max_steps", "5"]
    # Three steps of two batches an epoch.
    words += ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "2"]
    assert main(words) == 0
    first, second = [(i, 6) for i in range(1, 7)], [(i, 4) for i in range(1, 5)]
    assert shown == [*first, *second]
    for name in ("last", "best"):
        Path(f"runs/small/checkpoints/{name}.ckpt").unlink()
    shown.clear()
    assert main([*words, "--resume"]) == 0
    assert shown == second[-2:]


def test_the_progress_bar_counts_the_steps_of_a_longer_run_that_goes_on(config, monkeypatch):
    words = ["fit", "-c", config, "--model.schedule", "constant"]
    assert main([*words, "--trainer.max_steps", "1"]) == 0  # of 5,000 in an epoch
    totals = []
    original = ProgressBar.total_train_batches.fget
    monkeypatch.setattr(
        ProgressBar,
        "total_train_batches",
        property(lambda self: totals.append(original(self)) or totals[-1]),
    )
    assert main([*words, "--trainer.max_steps", "3", "--resume"]) == 0
    assert totals
    assert min(totals) > 0


@pytest.mark.parametrize("verb", ["test", "validate"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_test_with_its_status_and_without_metrics(
    config, capsys, monkeypatch, verb, number
):
    step = f"{verb.removesuffix('ate')}{'ation' if verb == 'validate' else ''}_step"
    monkeypatch.setattr(VideoPredictor, step, lambda *_: signal.raise_signal(number))
    status = 128 + number
    line = fails(capsys, status, verb, *PRETRAINED)
    assert line == f"convlstm {verb}: {'terminated' if number == 15 else 'interrupted'}"
    assert not Path("runs").exists()


def test_a_test_of_a_checkpoint_refuses_other_options_and_of_other_weights_stays_apart(
    config, capsys
):
    assert main(["fit", "-c", config]) == 0
    line = fails(capsys, 1, "test", "-c", config, "--model.hidden_sizes", "[9]")
    assert "--model.hidden_sizes is [9], but runs/small/checkpoints/best.ckpt has [2]" in line
    assert main(["test", "-c", config, "--model.hidden_sizes", "[2]"]) == 0
    own = Path("runs/small/test/metrics.json").read_text()
    assert main(["test", *PRETRAINED]) == 0
    assert Path("runs/small/test/metrics.json").read_text() == own
    assert Path("runs/small/test-moving-mnist/metrics.json").read_text() != own


def losses_become(value, step, monkeypatch):
    original = VideoPredictor.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        return loss * value if self.global_step == step else loss

    monkeypatch.setattr(VideoPredictor, "training_step", training_step)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_before_it_reaches_saved_weights(
    config, tmp_path, capsys, monkeypatch, value, ahead
):
    monkeypatch.setattr(guard, "_runs_ahead", lambda norm: ahead)  # as on a GPU
    losses_become(value, 2, monkeypatch)
    line = fails(capsys, 1, "fit", "-c", config, "--trainer.max_steps", "4")
    assert f"the loss is {value:g} and the gradient's norm nan at step 2, samples 4 to 5" in line
    assert "--nonfinite skip" in line
    last = torch.load(tmp_path / "runs/small/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


@pytest.mark.parametrize("step", [1, 3])
def test_on_a_gpu_a_loss_that_is_no_number_is_found_a_step_later_or_at_the_end(
    config, tmp_path, capsys, monkeypatch, step
):
    monkeypatch.setattr(guard, "_runs_ahead", lambda norm: True)
    losses_become(float("nan"), step, monkeypatch)
    words = ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0"]
    line = fails(capsys, 1, "fit", "-c", config, *words)
    assert f"at step {step}, samples" in line
    assert list((tmp_path / "runs/small/checkpoints").glob("*.ckpt")) == []


def test_an_infinite_loss_with_a_finite_gradient_stops_the_run(config, capsys, monkeypatch):
    original = VideoPredictor.training_step
    monkeypatch.setattr(
        VideoPredictor,
        "training_step",
        lambda self, *args: original(self, *args) + (torch.inf if self.global_step else 0),
    )
    line = fails(capsys, 1, "fit", "-c", config, "--trainer.max_steps", "4")
    assert "the loss is inf and the gradient's norm" in line
    assert "norm nan" not in line


@pytest.mark.filterwarnings("default:.*step left out")
def test_a_loss_that_is_no_number_can_be_skipped(config, tmp_path, capsys, monkeypatch):
    losses_become(float("nan"), 1, monkeypatch)
    main(["fit", "-c", config, "--trainer.max_steps", "4", "--nonfinite", "skip"])
    printed = capsys.readouterr().err
    assert printed.startswith("convlstm fit: warning: the loss is nan")
    assert printed.endswith("at step 1, samples 2 to 3: step left out\n")
    last = torch.load(tmp_path / "runs/small/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert {int(s["step"]) for s in last["optimizer_states"][0]["state"].values()} == {3}
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


def test_losses_that_never_become_numbers_again_stop_the_run(config, capsys, monkeypatch):
    monkeypatch.setattr(
        VideoPredictor, "training_step", lambda self, *_: self.network.head.bias.sum() * torch.nan
    )
    monkeypatch.setattr(warnings, "warn", lambda *_, **__: None)
    words = ["fit", "-c", config, "--trainer.max_steps", "40", "--nonfinite", "skip"]
    line = fails(capsys, 1, *words, "--trainer.limit_val_batches", "0")
    assert "at step 20" in line
    assert "as in the 20 steps before" in line


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_too_little_memory_names_the_options_to_change(config, capsys, monkeypatch, error):
    def training_step(*_):
        raise error

    monkeypatch.setattr(VideoPredictor, "training_step", training_step)
    line = fails(capsys, 1, "fit", "-c", config)
    assert "not enough memory: lower --data.batch_size" in line


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_checkpoints_before(
    config, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "runs" / "small" / "checkpoints"
    write = Path.write_bytes

    def full(self, data):
        if (folder / "last.ckpt").exists():
            write(self, bytes(data)[:1000])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    line = fails(capsys, 1, "fit", "-c", config, "--trainer.limit_val_batches", "1")
    assert "No space left on device" in line
    assert "checkpoints" in line
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1


def test_tensorboard_shows_losses_gradients_lead_times_and_moving_forecasts(config, tmp_path):
    assert main(["fit", "-c", config, "--trainer.log_every_n_steps", "1"]) == 0
    events = EventAccumulator(str(tmp_path / "runs/small/logs"), {"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    leads = {f"val_{name}_by_lead_time/{t:02d}" for name in ("mse", "ssim") for t in (1, 2, 3)}
    assert {"train/loss", "train/grad_norm", "lr-Adam", "val/mse", *leads} <= set(tags["scalars"])
    assert set(tags["images"]) == {"forecasts/0", "forecasts/1", "forecasts/2"}
    for image in events.Images("forecasts/0"):
        frames = iio.imread(image.encoded_image_string, extension=".gif")
        assert frames.shape[:3] == (5, image.height, image.width)
    mean = sum(events.Scalars(f"val_mse_by_lead_time/{t:02d}")[-1].value for t in (1, 2, 3)) / 3
    assert mean == pytest.approx(events.Scalars("val/mse")[-1].value, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "status", "named"),
    [
        (["fti"], 2, "did you mean 'fit'"),
        (["frobnicate"], 2, "one of demo, fit"),
        (["fit"], 2, "give a configuration file"),
        (["fit", "-c", "none.yaml"], 2, "none.yaml"),
        (["fit", "-c", "small.yaml", "--model.hidden_size", "4"], 2, "--model.hidden_size"),
        (["fit", "-c", "small.yaml", "--trainer.max_step", "5"], 2, "no option --trainer.max_step"),
        (["fit", "-c", "small.yaml", "--resum"], 2, "there is no option --resum"),
        (["predict", "clip.gif", "--step", "5"], 2, "there is no option --step 5"),
        (["fit", "-c", "small.yaml", "--data", "Nope"], 2, "such as ClipDataModule, or null, got"),
        (["fit", "-c", "small.yaml", "--model.downsample", "[1,2]"], 1, "[2], got [1, 2]"),
        (["fit", "-c", "small.yaml", "--trainer.max_steps", "many"], 2, "number, got many"),
        (["fit", "-c", "small.yaml", "--data.digits", "letters"], 2, "convlstm fit: error: "),
        (["fit", "-c", "wrong.yaml"], 2, "hidden"),
        (["fit", "-c", "number.yaml"], 2, "number.yaml: model must be a mapping of options, got 3"),
        (["fit", "-c", "broken.yaml"], 2, "broken.yaml: line 1: expected ',' or ']'"),
        (["fit", "-c", "twice.yaml"], 2, "twice.yaml: line 2: run_dir appears twice"),
        (["fit", "-c", "empty.yaml"], 2, "empty.yaml: a configuration must be a mapping"),
        (["fit", "--config=list.yaml"], 2, "list.yaml: a configuration must be a mapping of opt"),
        (["fit", "-c", "video.mp4"], 2, "video.mp4: no configuration, which would"),
        (["fit", "-c", "small.yaml", "--data.frame_size", "20"], 1, "frame_size is 20"),
        (["fit", "-c", "small.yaml", "--model.hidden_sizes", "[]"], 1, "hidden_sizes"),
        (["fit", "-c", "small.yaml", "--trainer.max_steps", "-1"], 1, "trainer.max_steps"),
        (["fit", "-c", "small.yaml", "--run_dir", "small.yaml/run"], 1, "small.yaml"),
        (["fit", "-c", "small.yaml", "--data.batch_size", "20000"], 1, "20000"),
        (["fit", "-c", "small.yaml", "--trainer.val_check_interval", "0"], 1, "limit_val_batches"),
        (["fit", "-c", "small.yaml", "--trainer.gradient_clip_val", "-1"], 1, "must be >= 0, got"),
        (["fit", "-c", "small.yaml", "--nonfinite", "ignore"], 2, "nonfinite"),
        (["test", *PRETRAINED, "--trainer.limit_test_batches", "0"], 1, "limit_test_batches is 0"),
        (["validate", *PRETRAINED, "--trainer.limit_val_batches", "0"], 1, "limit_val_batches is"),
        (["fit", "-c", "small.yaml", "--resume", "--ckpt_path", "last"], 1, "not both"),
        (
            ["fit", "-c", "small.yaml", "--trainer.accumulate_grad_batches", "2"],
            1,
            "a multiple of trainer.accumulate_grad_batches",
        ),
        (
            [
                *["fit", "-c", "small.yaml", "--trainer.accumulate_grad_batches", "2"],
                *["--trainer.val_check_interval", "2", "--trainer.limit_train_batches", "5"],
            ],
            1,
            "make trainer.limit_train_batches a multiple of trainer.accumulate_grad_batches",
        ),
        (["fit", "-c", "small.yaml", "--ckpt_path", "last"], 1, "no checkpoint at runs/small"),
        (["test", "-c", "small.yaml"], 1, "no checkpoint at runs/small/checkpoints/best.ckpt"),
        (["test", "-c", "small.yaml", "--ckpt_path", "small.yaml"], 1, "no checkpoint, or a trunc"),
        (["test", *PRETRAINED, "--num_forecasts", "0"], 1, "num_forecasts must be >= 1, got 0"),
        (["test", *PRETRAINED, "--fss_windows", "[3]"], 1, "--fss_windows is for the scores of"),
        (["test", *PRETRAINED, "--thresholds", "[35]"], 1, "thresholds must be above 0 and at mo"),
        (["test", *PRETRAINED, "--thresholds", "[0.5]", "--fss_windows", "[4]"], 1, "odd numbers"),
        (["test", *PRETRAINED, "--save_forecasts", "small.yaml/x"], 1, "small.yaml: Not a dir"),
        (["fit", "-c", "small.yaml", "--data.root", "null"], 1, "data.root must not be null"),
        (["fit", "-c", "small.yaml", "--trainer.devices", "-3"], 1, "devices"),
        (["fit", "-c", "small.yaml", "--data.test_file", "small.yaml"], 1, "small.yaml"),
        (["export", "none.safetensors", "out.safetensors"], 1, "named 'none.safetensors' and no"),
        (["predict"], 2, "files"),
        (["demo", "--out", "small.yaml"], 1, "small.yaml"),
        (["demo", "extra"], 2, "extra"),
    ],
)
def test_a_users_mistake_is_one_line_with_the_right_status(
    config, tmp_path, capsys, words, status, named
):
    with open("wrong.yaml", "w") as file:  # noqa: PTH123
        yaml.safe_dump({**CONFIG, "model": {"hidden": 3}}, file)
    with open("number.yaml", "w") as file:  # noqa: PTH123
        yaml.safe_dump({**CONFIG, "model": 3}, file)
    with open("broken.yaml", "w") as file:  # noqa: PTH123
        file.write("model: [1, 2")
    with open("twice.yaml", "w") as file:  # noqa: PTH123
        file.write("run_dir: a\nrun_dir: b\n" + yaml.safe_dump(CONFIG))
    Path("video.mp4").write_bytes(b"\xff\x00\xfe")
    Path("list.yaml").write_text("[model, data]")
    with open("empty.yaml", "w"):  # noqa: PTH123
        pass
    before = files(tmp_path)
    assert named in fails(capsys, status, *words)
    # Lightning opens its log before it looks at the loaders.
    left = {p for p in files(tmp_path) - before if "logs" not in p.parts}
    assert not left


def test_digits_that_are_nowhere_end_in_one_line(config, capsys, monkeypatch):
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)
    line = fails(capsys, 1, "fit", "-c", config, "--data.digits", "mnist", "--data.root", "nowhere")
    assert "nowhere" in line
    assert "builtin" in line


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["predict", "--help"], ["demo", "--help"]])
def test_help_goes_to_standard_output(words, capsys):
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code
    output = capsys.readouterr()
    assert status == 0
    assert "usage: convlstm" in output.out
    assert output.err == ""


def test_help_names_every_verb():
    for verb in VERBS:
        assert f"\n  {verb} " in convlstm.cli.HELP


def test_fit_help_has_the_options_with_their_meaning(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "convlstm fit -c configs/moving_mnist.yaml" in text
    assert "--run_dir" in text
    assert "--model.hidden_sizes" in text
    assert "Hidden channels of each stage" in text  # from the class's docstring


def test_version_without_arguments_and_as_a_module(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"convlstm {convlstm.__version__}\n"
    assert main([]) == 2
    done = subprocess.run(
        [sys.executable, "-m", "convlstm", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"convlstm {convlstm.__version__}\n"


def test_ctrl_c_ends_with_its_own_status(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "demo", interrupted)
    assert fails(capsys, 130, "demo") == "convlstm demo: interrupted"


def test_a_bug_is_not_dressed_up_as_a_users_mistake(monkeypatch):
    def broken(args):
        raise KeyError("bug")

    monkeypatch.setitem(VERBS, "demo", broken)
    with pytest.raises(KeyError):
        main(["demo"])


def test_the_traceback_is_there_for_who_asks(monkeypatch):
    def broken(args):
        raise ValueError("where?")

    monkeypatch.setitem(VERBS, "demo", broken)
    monkeypatch.setenv("CONVLSTM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="where"):
        main(["demo"])


def test_an_error_of_the_system_names_the_file():
    assert one_line(OSError(28, "No space left on device", "a.gif")) == (
        "a.gif: No space left on device"
    )
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_clip_is_named_in_a_training(config, tmp_path, capsys, workers):
    for split in ("train", "val"):
        (tmp_path / "clips" / split).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "clips" / split / str(number)).mkdir()
            for frame in range(6):
                path = tmp_path / "clips" / split / str(number) / f"{frame}.png"
                iio.imwrite(path, np.full((32, 32), frame, dtype=np.uint8))
    broken = tmp_path / "clips" / "train" / "1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = {"root": "clips", "frame_size": 32, "context_length": 2, "target_length": 3}
    data = {**data, "channels": 1, "batch_size": 2, "num_workers": workers}
    data = {"class_path": "ClipDataModule", "init_args": data}
    Path("clips.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data}))
    line = fails(capsys, 1, "fit", "-c", "clips.yaml")
    assert line.startswith("convlstm fit: error: clips/train/1/3.png: ")
    assert len(line) < 200


def test_a_damaged_array_is_named_in_a_training(config, tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / "clips" / split).mkdir(parents=True)
        np.save(tmp_path / "clips" / split / "a.npy", np.zeros((9, 32, 32), dtype=np.uint8))
    broken = tmp_path / "clips" / "train" / "a.npy"
    broken.write_bytes(broken.read_bytes()[:-100])
    data = {"class_path": "ClipDataModule", "init_args": {"root": "clips", "channels": 1}}
    Path("clips.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data}))
    assert "clips/train/a.npy: " in fails(capsys, 1, "fit", "-c", "clips.yaml")


def test_a_model_notes_how_far_apart_frames_were(config, tmp_path, capsys):
    for split in ("train", "val", "test"):
        (tmp_path / "clips" / split).mkdir(parents=True)
        np.save(tmp_path / "clips" / split / "a.npy", np.zeros((30, 32, 32), dtype=np.uint8))
    data = {"root": "clips", "frame_size": 32, "context_length": 2, "target_length": 3}
    data = {**data, "channels": 1, "batch_size": 2, "frame_step": 3}
    data = {"class_path": "ClipDataModule", "init_args": data}
    Path("clips.yaml").write_text(yaml.safe_dump({**CONFIG, "data": data}))
    assert main(["fit", "-c", "clips.yaml"]) == 0
    told = "Clips: 1 for training (18 windows), 1 for validation (2 windows)"
    assert told in capsys.readouterr().out
    assert convlstm.load("runs/clips/checkpoints/best.ckpt").hparams["frame_step"] == 3
    assert main(["fit", "-c", "runs/clips/config.yaml", "--resume"]) == 0
    assert main(["test", "-c", "runs/clips/config.yaml"]) == 0


def test_a_copied_run_that_goes_on_keeps_its_best_weights(config, tmp_path):
    assert main(["fit", "-c", config, "--model.schedule", "constant"]) == 0
    last = Path("runs/small/checkpoints/last.ckpt")
    state = torch.load(last, weights_only=True)
    (best,) = [s for key, s in state["callbacks"].items() if key.startswith("ModelCheckpoint")]
    best["best_model_score"] = torch.tensor(0.001)  # not to be beaten
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(0.001))
    best["kth_value"] = torch.tensor(0.001)
    torch.save(state, last)
    Path("runs/small").rename("runs/copy")
    kept = Path("runs/copy/checkpoints/best.ckpt").read_bytes()
    words = ["--model.schedule", "constant", "--run_dir", "runs/copy", "--trainer.max_steps", "4"]
    assert main(["fit", "-c", config, *words, "--resume"]) == 0
    assert torch.load("runs/copy/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    assert Path("runs/copy/checkpoints/best.ckpt").read_bytes() == kept
    Path("runs/copy/checkpoints/best.ckpt").unlink()  # left behind
    words[-1] = "5"
    assert main(["fit", "-c", config, *words, "--resume"]) == 0
    assert Path("runs/copy/checkpoints/best.ckpt").exists()


def test_a_moved_run_is_not_taken_for_another_one(config, capsys):
    assert main(["fit", "-c", config]) == 0
    Path("runs/small").rename("runs/old")
    assert main(["fit", "-c", config]) == 0
    for verb in (["test"], ["fit", "--resume"]):
        line = fails(capsys, 1, *verb, "-c", "runs/old/config.yaml")
        assert "moved here from runs/small: give --run_dir runs/old" in line
    assert not Path("runs/small/test").exists()
    assert main(["test", "-c", "runs/old/config.yaml", "--run_dir", "runs/old"]) == 0
    assert Path("runs/old/test/metrics.json").exists()


def test_paths_with_brackets_are_printed_as_they_are(config, capsys):
    assert main(["fit", "-c", config, "--run_dir", "runs/x[/y]"]) == 0
    assert "convlstm test -c 'runs/x[/y]/config.yaml'" in capsys.readouterr().out


@pytest.mark.filterwarnings("default:.*step left out")
def test_only_skipped_steps_in_a_row_stop_a_run(config, monkeypatch):
    monkeypatch.setattr(guard, "MOST_SKIPPED", 1)
    for step in (0, 2):
        losses_become(float("nan"), step, monkeypatch)
    words = ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "-c", config, "--nonfinite", "skip", *words]) == 0


def test_the_samples_of_all_accumulated_batches_are_named(config, capsys, monkeypatch):
    losses_become(float("nan"), 1, monkeypatch)
    words = ["--trainer.accumulate_grad_batches", "2", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.val_check_interval", "2"]
    line = fails(capsys, 1, "fit", "-c", config, *words)
    assert "at step 1, samples 4 to 7" in line


@pytest.mark.parametrize("ahead", [False, True])
def test_a_gradient_that_is_no_number_stops_the_run_with_a_finite_loss_too(
    config, tmp_path, capsys, monkeypatch, ahead
):
    original = VideoPredictor.training_step

    def training_step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        root = (0 * self.network.head.bias.sum()).sqrt()  # 0, with the gradient 0 * inf
        return loss + root if self.global_step == 1 else loss

    monkeypatch.setattr(guard, "_runs_ahead", lambda norm: ahead)  # as on a GPU
    monkeypatch.setattr(VideoPredictor, "training_step", training_step)
    line = fails(capsys, 1, "fit", "-c", config, "--trainer.max_steps", "4")
    assert "the gradient's norm nan at step 1" in line
    assert "the loss is nan" not in line
    last = torch.load(tmp_path / "runs/small/checkpoints/last.ckpt", weights_only=True)
    assert all(weight.isfinite().all() for weight in last["state_dict"].values())


def test_under_slurm_lightning_does_not_save_and_requeue_in_the_middle_of_a_step(
    config, monkeypatch
):
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    for name in ("NTASKS", "NTASKS_PER_NODE"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    seen = []

    def fit(self, **arguments):
        seen.append(self.trainer._accelerator_connector.cluster_environment)

    monkeypatch.setattr(VideoCLI, "fit", fit)
    assert main(["fit", "-c", config]) == 0
    assert isinstance(seen[0], SLURMEnvironment)
    assert not seen[0].auto_requeue


def test_strategies_that_divide_the_weights_are_refused(config, capsys, monkeypatch):
    sharded = SimpleNamespace(strategy=FSDPStrategy())
    monkeypatch.setattr(VideoCLI, "_instantiate_trainer", lambda *_: sharded)
    line = fails(capsys, 1, "fit", "-c", config, "--trainer.strategy", "fsdp")
    assert "trainer.strategy fsdp divides the weights among processes" in line


def test_processes_that_were_started_end_with_the_one_that_started_them():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    processes = [subprocess.Popen([sys.executable, "-c", c]) for c in ("input()", code)]
    launcher = SimpleNamespace(procs=list(processes))
    end_others(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))
    assert not launcher.procs
    assert all(process.wait(10) != 0 for process in processes)
    end_others(SimpleNamespace(strategy=SimpleNamespace(launcher=None)))
