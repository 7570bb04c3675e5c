import json
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import imageio.v3 as iio
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from convlstm import VideoPredictor
from convlstm.callbacks import (
    AtomicCheckpointIO,
    BestCheckpoint,
    ForecastWriter,
    GradientGuard,
    Interruption,
    LastCheckpoint,
    Processor,
    ProgressBar,
    RunRecord,
    StepSeeds,
    processor,
    progress,
    record,
)
from convlstm.callbacks.record import environment
from convlstm.callbacks.report import LABELS, metrics_table, plot_lead_times, write_metrics
from convlstm.callbacks.watch import ValidationWatch
from convlstm.files import PREFIX
from convlstm.metrics import METRICS, ForecastMetrics


def metrics(scale, steps=4):
    values = ForecastMetrics()
    truth = torch.rand(3, steps, 1, 8, 8)
    values.update(truth * scale, truth)
    return values.summary()


def test_the_table_has_the_last_frames_metrics_below_the_models():
    model, baseline = metrics(0.9), metrics(0.5)
    table = metrics_table(model, baseline)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert list(columns) == ["metric", "forecast by", "mean", "+1", "+2", "+4"]
    assert columns["metric"][::2] == [LABELS[name] for name in METRICS]
    assert columns["forecast by"] == ["the model", "the last frame"] * len(METRICS)
    assert columns["mean"][:2] == [f"{model['mse']:.2f}", f"{baseline['mse']:.2f}"]
    last = model["ssim_by_lead_time"][3], baseline["ssim_by_lead_time"][3]
    assert columns["+4"][4:6] == [f"{last[0]:.4f}", f"{last[1]:.4f}"]


def test_one_step_makes_one_column():
    table = metrics_table(metrics(0.9, steps=1), metrics(0.5, steps=1))
    headers = [column.header for column in table.columns]
    assert headers == ["metric", "forecast by", "mean", "+1"]


def test_the_curve_is_a_picture(tmp_path):
    plot_lead_times(tmp_path / "new" / "lead_time.png", metrics(0.9), metrics(0.5))
    picture = iio.imread(tmp_path / "new" / "lead_time.png")
    assert picture.shape[1] > 2 * picture.shape[0]
    assert picture[..., :3].std() > 5


def test_pictures_are_written_for_the_first_clips_whatever_the_batches(tmp_path, capsys):
    writer = ForecastWriter(tmp_path / "pictures", count=3)
    for numbers in ([0, 2], [1, 3]):  # as two processes would share them out
        n = len(numbers)
        batch = {
            "context": torch.randint(0, 256, (n, 2, 1, 8, 8), dtype=torch.uint8),
            "target": torch.randint(0, 256, (n, 3, 1, 8, 8), dtype=torch.uint8),
            "index": torch.tensor(numbers),
        }
        writer.on_test_batch_end(None, None, torch.rand(n, 3, 1, 8, 8), batch, 0)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [f"0000{i}.{kind}" for i in range(3) for kind in ("gif", "png")]
    assert len(iio.imread(tmp_path / "pictures" / "00001.gif")) == 5
    writer.on_test_end(SimpleNamespace(is_global_zero=True), None)
    assert str(tmp_path / "pictures") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("channels", "value", "shown"), [(1, 0.5, 2), (2, 0.5, 0), (1, float("nan"), 1)]
)
def test_tensorboard_has_the_forecasts_that_can_be_shown(tmp_path, channels, value, shown):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    model = VideoPredictor(channels=channels, patch_size=2, hidden_sizes=[2])
    run = SimpleNamespace(
        loggers=[logger],
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        global_step=3,
    )
    context, target = torch.rand(2, 3, channels, 8, 8), torch.rand(2, 2, channels, 8, 8)
    forecast = target.clone()
    forecast[0, 0, 0, 0, 0] = value
    model.val_metrics.update(forecast, target)
    watch = ValidationWatch()
    watch.on_validation_batch_end(run, model, forecast, {"context": context, "target": target}, 0)
    watch.on_validation_end(run, model)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), {"images": 0, "scalars": 0})
    events.Reload()
    assert len(events.Tags()["images"]) == shown
    assert "val_mse_by_lead_time/01" in events.Tags()["scalars"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"step": 1}, path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        plugin.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_checkpoint_has_a_fixed_name_and_the_lowest_mse(tmp_path):
    callback = BestCheckpoint(tmp_path)
    assert callback.dirpath == str(tmp_path)
    assert callback.format_checkpoint_name({}) == str(tmp_path / "best.ckpt")
    assert callback.monitor == "val/mse"
    assert callback.mode == "min"


class Saver:
    """The part of a Trainer that saves."""

    is_global_zero = True
    global_step = 0

    def save_checkpoint(self, path):
        path.write_text(str(self.global_step))


def test_the_last_checkpoint_and_the_one_before_are_kept(tmp_path):
    callback, trainer = LastCheckpoint(tmp_path), Saver()
    for trainer.global_step in (3, 3, 6, 9):
        callback.save(trainer)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "last.ckpt": "9",
        "previous.ckpt": "6",
    }


def test_a_save_that_fails_leaves_both(tmp_path):
    callback, trainer = LastCheckpoint(tmp_path), Saver()
    for trainer.global_step in (3, 6):
        callback.save(trainer)

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    trainer.save_checkpoint, trainer.global_step = full, 9
    with pytest.raises(OSError, match="No space left"):
        callback.save(trainer)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "last.ckpt": "6",
        "previous.ckpt": "3",
    }


def test_the_record_says_what_ran(tmp_path):
    class Trainer:
        is_global_zero = True

    RunRecord(tmp_path / "run", "a: 1\n").on_train_start(Trainer(), None)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "run" / "environment.json").read_text()) == environment()
    assert environment()["packages"]["torch"] == torch.__version__.split("+")[0]


def test_only_the_first_process_writes_the_record(tmp_path):
    class Trainer:
        is_global_zero = False

    RunRecord(tmp_path / "run", "a: 1\n").on_train_start(Trainer(), None)
    assert not (tmp_path / "run").exists()


def trainer_on(device, precision="32-true"):
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision
    )


def a_denormal():
    return (torch.tensor(1e-38) * 0.1).item()  # the smallest normal number is 1.2e-38


def test_on_the_cpu_denormals_are_zero_while_a_run_lasts():
    before = a_denormal()
    callback = Processor()
    callback.setup(trainer_on("cpu"), None, "fit")
    during = a_denormal()
    callback.teardown(trainer_on("cpu"), None, "fit")
    assert (before > 0, during, a_denormal() > 0) == (True, 0.0, True)


@pytest.mark.parametrize("flushed", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_after_a_run_denormals_are_treated_as_before(flushed, fails):
    class Failing(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            if fails:
                raise KeyError("batch")

        def configure_optimizers(self):
            return None

    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        callbacks=[Processor()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.set_flush_denormal(flushed)
    try:
        with warnings.catch_warnings(), pytest.raises(KeyError) if fails else nullcontext():
            warnings.simplefilter("ignore")
            trainer.fit(Failing(), DataLoader([0]))
        assert (a_denormal() == 0) == flushed
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
def test_a_processor_with_bfloat16_is_not_warned_of_it(monkeypatch, capability):
    monkeypatch.setattr(processor.torch.cpu, "get_capabilities", lambda: {capability: True})
    callback = Processor()
    callback.setup(trainer_on("cpu", "bf16-mixed"), None, "fit")
    callback.teardown(trainer_on("cpu"), None, "fit")


def test_bfloat16_on_a_processor_without_it_is_warned_of_and_only_there(monkeypatch):
    capabilities = {"avx512_bf16": False, "avx2": True}
    monkeypatch.setattr(processor.torch.cpu, "get_capabilities", lambda: capabilities)
    callback = Processor()
    with pytest.warns(RuntimeWarning, match="no bfloat16 .* bf16-mixed is no faster"):
        callback.setup(trainer_on("cpu", "bf16-mixed"), None, "fit")
    callback.setup(trainer_on("cpu"), None, "fit")
    callback.setup(trainer_on("cuda", "bf16-mixed"), None, "fit")
    callback.teardown(trainer_on("cpu"), None, "fit")


def test_tensorboard_has_the_first_four_clips_over_all_batches(tmp_path):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    run = SimpleNamespace(loggers=[logger], is_global_zero=True)
    clips = torch.arange(6.0).view(6, 1, 1, 1, 1)
    watch = ValidationWatch()
    for part in clips.split(3):
        batch = {"context": part, "target": part}
        watch.on_validation_batch_end(run, None, part, batch, 0)
    assert [clip[0].item() for clip in watch._clips] == [0, 1, 2, 3]


def test_each_batch_process_and_seed_has_random_numbers_of_its_own():
    def drawn(seed=0, step=0, batch=0, rank=0):
        trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=2, global_rank=rank)
        module = SimpleNamespace(device=torch.device("cpu"))
        StepSeeds(seed).on_train_batch_start(trainer, module, None, batch)
        return torch.rand(1).item()

    others = [{}, {"seed": 1}, {"step": 1}, {"batch": 1}, {"rank": 1}]
    assert len({drawn(**other) for other in others}) == len(others)
    # Of a resumed run, which may count its batches anew.
    assert drawn(step=3, batch=7) == drawn(step=3, batch=1)


def test_the_metrics_file_says_whose_are_whose(tmp_path):
    write_metrics(tmp_path / "m.json", {"mse": torch.tensor(1.0)}, {"mse": torch.tensor(2.0)})
    written = json.loads((tmp_path / "m.json").read_text())
    assert written == {"model": {"mse": 1.0}, "last_frame": {"mse": 2.0}}


@pytest.mark.parametrize(("status", "changed"), [("", False), (" M a.py", True), (None, None)])
def test_a_run_notes_whether_its_code_is_that_of_the_commit(monkeypatch, status, changed):
    asked = []

    def git(*words):
        asked.append(words)
        return status if words[0] == "status" else "abc"

    monkeypatch.setattr(record, "_git", git)
    assert environment()["git"] == {"commit": "abc", "changed": changed}
    assert ("status", "--porcelain", "--untracked-files=no") in asked


def guarded_step(precision, *, loss=1.0, gradient=1.0, samples=(0,)):
    """Step 5 of a training by one process, under a guard that stops it."""
    alone = SimpleNamespace(all_gather=lambda x: x, reduce=lambda x: x)
    trainer = SimpleNamespace(strategy=alone, precision=precision, global_step=5)
    trainer.accumulate_grad_batches = 1
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.full((1,), gradient)
    module = SimpleNamespace(log=lambda *_: None, parameters=lambda: [weight])
    callback = GradientGuard("stop")
    callback.on_train_batch_start(trainer, module, {"index": torch.tensor(samples)}, 0)
    callback.on_before_backward(trainer, module, torch.tensor(loss))
    callback.on_before_optimizer_step(trainer, module, None)


@pytest.mark.parametrize(
    ("samples", "told"), [([7, 2, 4], "samples 2, 4, 7"), ([4, 2, 3], "samples 2 to 4")]
)
def test_samples_of_a_loss_that_is_nan_are_named(samples, told):
    with pytest.raises(FloatingPointError, match=f"at step 5, {told}\\."):
        guarded_step("32-true", loss=torch.nan, samples=samples)


def test_gradients_that_overflow_in_float16_are_left_to_the_scaler():
    guarded_step("16-mixed", gradient=torch.inf)
    with pytest.raises(FloatingPointError):
        guarded_step("32-true", gradient=torch.inf)


def test_a_test_without_a_terminal_says_ten_times_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress.RichProgressBar, "on_test_batch_end", lambda *_: None)
    trainer = SimpleNamespace(num_test_batches=[40], is_global_zero=True)
    for batch in range(40):
        ProgressBar().on_test_batch_end(trainer, None, None, None, batch)
    assert capsys.readouterr().out.splitlines() == [f"batch {n} of 40" for n in range(4, 41, 4)]
    trainer.is_global_zero = False
    ProgressBar().on_test_batch_end(trainer, None, None, None, 3)
    assert capsys.readouterr().out == ""


def test_an_epoch_without_a_last_one_has_its_number_alone():
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=-1)
    assert bar._get_train_description(3).strip() == "Epoch 3"


def a_training():
    return SimpleNamespace(val_check_batch=2, accumulate_grad_batches=1, num_training_batches=4)


def test_a_training_in_a_thread_has_no_signals_to_look_for(tmp_path):
    callback = Interruption(LastCheckpoint(tmp_path))
    with ThreadPoolExecutor() as pool:
        pool.submit(callback.on_train_start, a_training(), None).result()


def test_a_second_interrupt_does_not_wait_for_the_step(tmp_path):
    callback = Interruption(LastCheckpoint(tmp_path))
    before = signal.getsignal(signal.SIGINT)
    callback.on_train_start(a_training(), None)
    try:
        signal.raise_signal(signal.SIGINT)
        assert callback.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        callback.on_train_end(a_training(), None)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_killed_training_left_half_written_is_removed(tmp_path):
    (tmp_path / f"{PREFIX}1.ckpt").touch()
    (tmp_path / "best.ckpt").touch()
    LastCheckpoint(tmp_path).on_train_start(SimpleNamespace(is_global_zero=True), None)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
