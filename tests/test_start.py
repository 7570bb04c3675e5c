"""What a training starts from: `convlstm fit --start_from`, `--resume`, `--ckpt_path`."""

from pathlib import Path

import pytest
import torch
import yaml
from small_run import CONFIG, fails, files
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from convlstm import VideoPredictor
from convlstm.cli import main
from convlstm.cli.start import NETWORK
from convlstm.pixels import to_unit
from convlstm.weights import write_weights
from datamodules import MovingMNISTDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
FROM = ("--start_from", "own.safetensors")


def write(name="own.safetensors", **options):
    """Trained weights of another network than small.yaml has; returns the model."""
    torch.manual_seed(3)
    model = VideoPredictor(**{"patch_size": 2, "hidden_sizes": [3], "warmup": 0.9, **options})
    write_weights(name, model.state_dict(), dict(model.hparams))
    return model


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(yaml.safe_dump(CONFIG))
    return "small.yaml"


def checkpoint(run, name="last"):
    return torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True)


def same(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def lose_the_end(run):
    for name in ("last", "best"):
        Path(f"{run}/checkpoints/{name}.ckpt").unlink()


def validation_scores(capsys, *words):
    """What `convlstm validate` prints for val/mse."""
    capsys.readouterr()
    assert main(["validate", *words]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "val/mse" in line)
    return float(line.split("│")[2])


def test_the_weights_bring_all_that_shapes_the_network():
    assert set(NETWORK) == {
        *("channels", "patch_size", "hidden_sizes", "kernel_size", "hidden_kernel_size", "cell"),
        *(
            "downsample",
            "forecaster",
            "peephole",
            "readout",
            "head_size",
            "residual",
            "bidirectional",
            "attention",
        ),
    }


def test_a_training_starts_from_the_weights_and_takes_how_to_train_from_the_configuration(
    config, capsys
):
    model = write()
    words = ["--trainer.log_every_n_steps", "1", "--model.learning_rate", "0.01"]
    assert main(["fit", "-c", config, *FROM, *words]) == 0
    said = "the weights own.safetensors; they bring their network with them: "
    assert said + "patch_size 2 (not 4), hidden_sizes [3] (not [2])" in capsys.readouterr().out

    data = MovingMNISTDataModule(**CONFIG["data"]["init_args"])
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    forecast = model(to_unit(batch["context"]), 3)
    events = EventAccumulator("runs/small/logs")
    events.Reload()
    first = events.Scalars("train/loss")[0].value
    torch.testing.assert_close(first, model.loss(forecast, to_unit(batch["target"])).item())

    used = checkpoint("runs/small")["hyper_parameters"]
    assert (used["patch_size"], used["hidden_sizes"]) == (2, [3])
    assert (used["learning_rate"], used["warmup"]) == (0.01, 0.3)  # 0.3: the configuration's
    written = yaml.safe_load(Path("runs/small/config.yaml").read_text())
    assert written["start_from"] == "own.safetensors"
    assert written["model"]["hidden_sizes"] == [3]


@pytest.mark.slow
def test_before_it_trains_its_metrics_are_those_of_the_weights_and_then_they_improve(
    config, capsys
):
    words = ["-c", config, "--data.val_size", "20", "--data.frame_size", "64"]
    begin = ["--start_from", "moving-mnist", "--trainer.val_check_interval"]
    # One step too small to change any weight; then real ones.
    still = ["--model.schedule", "constant", "--model.learning_rate", "1e-30"]
    steps = ["--trainer.max_steps", "40"]
    assert main(["fit", *words, *begin, "1", *still, "--run_dir", "still"]) == 0
    assert main(["fit", *words, *begin, "40", *steps, "--run_dir", "run"]) == 0
    of_weights = validation_scores(capsys, *words, "--pretrained", "moving-mnist")
    assert validation_scores(capsys, "-c", "still/config.yaml") == of_weights
    assert validation_scores(capsys, "-c", "run/config.yaml") < of_weights


def test_the_recorded_configuration_repeats_resumes_and_tests_the_run(config, capsys):
    write()
    start = ["fit", "-c", config, *FROM, "--trainer.max_steps", "4"]
    assert main([*start, "--trainer.val_check_interval", "2"]) == 0
    whole = checkpoint("runs/small")
    recorded = Path("runs/small/config.yaml").read_text()
    again = ["fit", "-c", "runs/small/config.yaml"]
    assert main([*again, "--run_dir", "again"]) == 0
    assert same(checkpoint("again")["state_dict"], whole["state_dict"])

    # Stopped after two steps, it goes on from there, with the weights gone or others in their
    # place: after the first command with --resume, and after the recorded configuration.
    write(hidden_sizes=[5])
    lose_the_end("runs/small")
    assert checkpoint("runs/small", "previous")["global_step"] == 2
    capsys.readouterr()
    assert main([*start, "--trainer.val_check_interval", "2", "--resume"]) == 0
    assert "Resuming from step 2" in capsys.readouterr().out
    assert same(checkpoint("runs/small")["state_dict"], whole["state_dict"])
    assert Path("runs/small/config.yaml").read_text() == recorded

    Path("own.safetensors").unlink()
    lose_the_end("runs/small")
    assert main([*again, "--resume"]) == 0
    assert same(checkpoint("runs/small")["state_dict"], whole["state_dict"])
    assert Path("runs/small/config.yaml").read_text() == recorded

    capsys.readouterr()
    for verb in ("test", "validate"):
        assert main([verb, "-c", "runs/small/config.yaml"]) == 0
        assert "ing runs/small/checkpoints/best.ckpt\n" in capsys.readouterr().out


def test_a_run_that_goes_on_remembers_what_it_started_from(config, capsys):
    write()
    write("other.safetensors")
    assert main(["fit", "-c", config, *FROM]) == 0
    recorded = Path("runs/small/config.yaml").read_text()
    lose_the_end("runs/small")
    line = fails(capsys, 1, "fit", "-c", config, "--resume", "--start_from", "other.safetensors")
    assert "--start_from is other.safetensors, but runs/small started from own.safetens" in line
    assert main(["fit", "-c", config, "--resume"]) == 0
    assert Path("runs/small/config.yaml").read_text() == recorded

    assert main(["fit", "-c", config, "--run_dir", "anew"]) == 0
    words = ["fit", "-c", config, "--run_dir", "anew", "--resume", *FROM]
    assert "but anew started from no weights" in fails(capsys, 1, *words)


@pytest.mark.parametrize("source", ["moving-mnist", "runs/small/checkpoints/best.ckpt"])
def test_weights_that_ship_and_checkpoints_can_be_started_from(config, source):
    if source != "moving-mnist":
        assert main(["fit", "-c", config, "--model.patch_size", "8"]) == 0
    small = ["--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
    # 1e-60 is 0 in float32: even weights of 0 stay.
    words = ["--start_from", source, "--run_dir", "tuned", "--model.learning_rate", "1e-60"]
    assert main(["fit", "-c", config, *words, *small]) == 0
    before = VideoPredictor.from_pretrained(source).state_dict()
    assert same(checkpoint("tuned")["state_dict"], before)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model.patch_size", "4"], "--model.patch_size is 4, but own.safetensors has 2"),
        (["--model.patch_size=4"], "--model.patch_size is 4, but own.safetensors has 2"),
        (["--model.loss", "cross_entropy"], "--model.loss is cross_entropy, but own.safetensors"),
        (["--model.scheduled_sampling_steps", "5"], "scheduled_sampling_steps must be >= 0"),
        (["--start_from", "nothing"], "no weights named 'nothing'"),
        (["--start_from", "nothing.ckpt"], "no checkpoint at nothing.ckpt"),
        (["--start_from", "half.safetensors"], "half.safetensors cannot be read as safetensors"),
        (["--start_from", "half.ckpt"], "half.ckpt is no checkpoint, or a truncated one"),
        (["--start_from", "."], ". is a folder"),
        (["--start_from", "rgb.safetensors"], "takes frames of 3 channels, the data has 1"),
        (["--start_from", "full.safetensors"], "frames of 16 x 16 pixels, the data has 32 x 32"),
        (["--start_from", "torn.safetensors"], "torn.safetensors: weights and options differ"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(config, tmp_path, capsys, words, named):
    whole = write().state_dict()
    write("rgb.safetensors", channels=3)
    write("full.safetensors", peephole="full", frame_size=[16, 16])
    write_weights("torn.safetensors", whole, {"patch_size": 2, "hidden_sizes": [4]})
    content = Path("own.safetensors").read_bytes()
    for name in ("half.safetensors", "half.ckpt"):
        Path(name).write_bytes(content[: len(content) // 2])
    before = files(tmp_path)
    assert named in fails(capsys, 1, "fit", "-c", config, *FROM, *words)
    assert files(tmp_path) == before


def test_the_loss_is_the_configurations_as_long_as_the_output_stays_what_it_is(config, capsys):
    write("plain.safetensors", loss="mse+mae")
    write("sigmoid.safetensors", loss="cross_entropy")
    small = ["--trainer.limit_val_batches", "0", "--model.loss"]
    for name, asked, used in (("plain", "mae", "mae"), ("sigmoid", None, "cross_entropy")):
        start = ["--start_from", f"{name}.safetensors", "--run_dir", name]
        words = [*start, *(small if asked else small[:-1]), *([asked] if asked else [])]
        assert main(["fit", "-c", config, *words]) == 0
        assert checkpoint(name)["hyper_parameters"]["loss"] == used
    assert "loss cross_entropy (not mse)" in capsys.readouterr().out


def test_peepholes_of_each_pixel_bring_their_frame_size(config):
    write(peephole="full", frame_size=[32, 32])
    small = ["--trainer.limit_val_batches", "0"]
    assert main(["fit", "-c", config, *FROM, *small]) == 0
    assert checkpoint("runs/small")["hyper_parameters"]["frame_size"] == [32, 32]


def test_clips_are_told_which_channels_the_weights_take(config, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    clips = {"class_path": "ClipDataModule", "init_args": {"root": "videos"}}
    Path("clips.yaml").write_text(yaml.safe_dump({**CONFIG, "data": clips}))
    line = fails(capsys, 1, "fit", "-c", "clips.yaml", "--start_from", "moving-mnist")
    assert line.endswith("frames of 1 channels, the data has 3: give --data.channels 1")
    line = fails(capsys, 1, "fit", "-c", "clips.yaml")
    assert line.endswith("give --data.channels 1 or --model.channels 3")


def test_a_training_that_goes_on_keeps_the_models_options(config, capsys):
    assert main(["fit", "-c", config]) == 0
    before = Path("runs/small/config.yaml").read_text()
    for words, named in (
        (["--model.hidden_sizes", "[8]"], "--model.hidden_sizes is [8], but "),
        (["--model.learning_rate", "0.5"], "last.ckpt was trained with 0.001"),
        (["--data.context_length", "3"], "--data.context_length is 3, but "),
    ):
        for how in (["--resume"], ["--ckpt_path", "last"]):
            line = fails(capsys, 1, "fit", "-c", config, *how, *words)
            assert named in line
            assert "-c runs/small/config.yaml --resume" in line
    assert Path("runs/small/config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data.num_digits", "3"], "data.num_digits is 3, but the checkpoint was trained with 2"),
        (["--data.speed", "[1,2]"], "data.speed is [1.0, 2.0], but"),
        (
            ["--data.occlude", "[1,1]"],
            "data.occlude is [1, 1], but the checkpoint was trained with None",
        ),
        (["--seed_everything", "5"], "--seed_everything is 5, but"),
    ],
)
def test_a_training_that_goes_on_keeps_its_sequences_and_its_seed(config, capsys, words, named):
    assert main(["fit", "-c", config]) == 0
    lose_the_end("runs/small")
    before = Path("runs/small/config.yaml").read_text()
    line = fails(capsys, 1, "fit", "-c", config, "--resume", *words)
    assert named in line
    assert Path("runs/small/config.yaml").read_text() == before
    assert files(Path("runs/small/checkpoints")) == {Path("previous.ckpt")}


def test_a_run_that_goes_on_in_another_precision_says_so(config, capsys):
    words = ["fit", "-c", config]
    assert main([*words, "--trainer.precision", "64-true"]) == 0
    lose_the_end("runs/small")
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert "; in precision 32-true, no longer 64-true" in capsys.readouterr().out
    lose_the_end("runs/small")
    assert main([*words, "--resume"]) == 0
    assert "no longer" not in capsys.readouterr().out


def test_a_run_goes_on_with_its_own_configuration_whatever_was_typed_at_first(config, capsys):
    words = ["--model.hidden_sizes", "[3]", "--trainer.limit_val_batches", "0"]
    assert main(["fit", "-c", config, *words, "--trainer.max_epochs", "1"]) == 0
    again = ["fit", "-c", "runs/small/config.yaml", "--resume"]
    capsys.readouterr()
    assert main(again) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_run_may_go_on_with_less_memory(config):
    words = ["fit", "-c", config, "--model.schedule", "constant", "--data.train_size", "4"]
    words += ["--trainer.max_steps", "-1", "--trainer.max_epochs"]
    assert main([*words, "1"]) == 0
    assert main([*words, "2", "--resume", "--model.checkpoint_every", "2"]) == 0
    saved = checkpoint("runs/small")
    assert (saved["global_step"], saved["hyper_parameters"]["checkpoint_every"]) == (4, 2)


def test_a_run_that_is_finished_in_epochs_is_so_until_it_gets_more(config, capsys):
    words = ["fit", "-c", config, "--model.schedule", "constant", "--data.train_size", "4"]
    words += ["--trainer.max_steps", "-1", "--trainer.max_epochs"]
    assert main([*words, "1"]) == 0
    assert main([*words, "1", "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*words, "2", "--resume"]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert checkpoint("runs/small")["global_step"] == 4
    assert main([*words, "2", "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
