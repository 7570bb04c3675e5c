"""`benchmarks/average.py`."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

import convlstm
from convlstm import VideoPredictor
from convlstm.weights import write_weights

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "average.py"
MODELS = {
    "first": {},
    "second": {"learning_rate": 0.1, "frame_size": [96, 96], "checkpoint_every": 5},
    "wide": {"hidden_sizes": [3]},
    "peephole": {"peephole": "full"},
    "larger": {"peephole": "full", "frame_size": [96, 96]},
    "sigmoid": {"loss": "cross_entropy"},
}


@pytest.fixture
def average(tmp_path, monkeypatch):
    """Runs the script, in a folder with these models, on these words."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, options) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = VideoPredictor(**{"hidden_sizes": [2], "frame_size": [64, 64], **options})
        write_weights(f"{name}.safetensors", model.state_dict(), dict(model.hparams))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["average.py", *words])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_weights_are_averaged_by_their_shares_and_options_are_those_of_the_first(average):
    average("first.safetensors=3", "second.safetensors=1", "--out", "mean.safetensors")
    first, second, mean = (
        convlstm.load(f"{name}.safetensors") for name in ("first", "second", "mean")
    )
    assert dict(mean.hparams) == dict(first.hparams) != dict(second.hparams)
    for name, weight in mean.state_dict().items():
        expected = 0.75 * first.state_dict()[name] + 0.25 * second.state_dict()[name]
        torch.testing.assert_close(weight, expected.half().float(), atol=0, rtol=2**-10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["first.safetensors=1", "wide.safetensors=1"], "they differ in hidden_sizes"),
        (["first.safetensors=1", "peephole.safetensors=1"], "they differ in peephole"),
        (["peephole.safetensors=1", "larger.safetensors=1"], "they differ in shapes"),
        (["first.safetensors=1", "sigmoid.safetensors=1"], "they differ in output"),
        (["first.safetensors=0"], "'first.safetensors=0' is not MODEL=SHARE"),
        (["first.safetensors=nan"], "is not MODEL=SHARE"),
        (["first.safetensors"], "is not MODEL=SHARE"),
        (["=1"], "is not MODEL=SHARE"),
        (["missing.safetensors=1"], "no such file"),
        (["missing.ckpt=1"], "missing.ckpt"),
    ],
)
def test_what_cannot_be_averaged_is_told_and_nothing_written(average, capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        average(*words, "--out", "mean.safetensors")
    assert message in capsys.readouterr().err
    assert not Path("mean.safetensors").exists()


def test_the_file_to_write_is_a_safetensors_file(average, capsys):
    with pytest.raises(SystemExit, match="2"):
        average("first.safetensors=1", "--out", "mean.ckpt")
    assert "must end in .safetensors, got mean.ckpt" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told(average, capsys):
    with pytest.raises(SystemExit, match="2"):
        average("first.safetensors=1", "--out", "second.safetensors/mean.safetensors")
    assert "second.safetensors" in capsys.readouterr().err
