import json
from pathlib import Path

import pytest
import torch

from convlstm import VideoPredictor
from convlstm.cli import main


def save(model, path):
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return save(VideoPredictor(patch_size=2, hidden_sizes=[4]), tmp_path / "best.ckpt")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_exported_checkpoint_forecasts_as_before(tmp_path, checkpoint, dtype, capsys):
    out = tmp_path / "shared" / "model.safetensors"
    assert main(["export", str(checkpoint), str(out), "--dtype", dtype]) == 0
    assert "MiB" in capsys.readouterr().out
    clip = torch.rand(3, 1, 8, 8)
    before = VideoPredictor.from_pretrained(checkpoint).forecast(clip, 2)
    after = VideoPredictor.from_pretrained(out).forecast(clip, 2)
    # float16 keeps 11 bits of each weight
    torch.testing.assert_close(after, before, rtol=0, atol=0 if dtype == "float32" else 2e-3)


def test_a_residual_model_stays_one(tmp_path):
    """Untrained it repeats the last frame, exactly; a plain model of its weights shows black."""
    model = VideoPredictor(patch_size=2, hidden_sizes=[4], residual=True)
    saved, out = save(model, tmp_path / "best.ckpt"), tmp_path / "model.safetensors"
    assert main(["export", str(saved), str(out)]) == 0
    clip = torch.rand(3, 1, 8, 8)
    for path in (saved, out):
        forecast = VideoPredictor.from_pretrained(path).forecast(clip, 2)
        assert torch.equal(forecast, clip[-1:].expand(2, 1, 8, 8))


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e5, "float16")])
def test_weights_that_nobody_could_load_are_not_written(tmp_path, capsys, value, dtype):
    model = VideoPredictor(patch_size=2, hidden_sizes=[4])
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    out = tmp_path / "model.safetensors"
    saved = save(model, tmp_path / "best.ckpt")
    assert main(["export", str(saved), str(out), "--dtype", dtype]) == 1
    printed = capsys.readouterr().err
    assert f"is NaN or infinite in {dtype}: export another" in printed
    assert printed.count("\n") == 1
    assert not out.exists()


def test_bundled_and_exported_weights_can_be_stored_in_another_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "moving-mnist", "half.safetensors", "--dtype", "float16"]) == 0
    assert main(["export", "half.safetensors", "again.safetensors", "--dtype", "float16"]) == 0
    half, again = (Path(f"{name}.safetensors").read_bytes() for name in ("half", "again"))
    assert half == again
    bundled = VideoPredictor.from_pretrained("moving-mnist").state_dict()
    for name, value in VideoPredictor.from_pretrained("half.safetensors").state_dict().items():
        assert torch.equal(value, bundled[name].half().float())


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["best.ckpt", "model.pt"], 2, "must end in .safetensors, got model.pt"),
        (["nowhere.ckpt", "model.safetensors"], 1, "no checkpoint at nowhere.ckpt"),
        (["best.ckpt", "model.safetensors", "--dtype", "int8"], 2, "int8"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, checkpoint, monkeypatch, capsys, words, status, says):
    monkeypatch.chdir(tmp_path)
    try:
        result = main(["export", *words])
    except SystemExit as error:
        result = error.code
    assert result == status
    printed = capsys.readouterr().err
    assert says in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_exported_weights_are_tested_with_their_own_options(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "best.ckpt", "model.safetensors"]) == 0
    data = {"digits": "builtin", "frame_size": 32, "test_size": 3, "context_length": 2}
    data_words = [f"--data.{key}={value}" for key, value in data.items()]
    words = ["test", "--data", "MovingMNISTDataModule", *data_words, "--trainer.accelerator=cpu"]
    scores = []
    for folder, more in (
        ("test-model", ["--pretrained", "model.safetensors"]),  # whatever the configuration says
        ("test", ["--ckpt_path", "best.ckpt", "--model.patch_size=2", "--model.hidden_sizes=[4]"]),
    ):
        assert main([*words, "--run_dir", "run", *more]) == 0
        scores.append(json.loads((tmp_path / "run" / folder / "metrics.json").read_text()))
    assert scores[0] == scores[1]


def test_pretrained_and_checkpoint_exclude_each_other(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data", "MovingMNISTDataModule", "--data.digits=builtin"]
    both = ["--pretrained", "x.safetensors", "--ckpt_path", "best.ckpt"]
    assert main(["test", *words, *both]) == 1
    assert "give --pretrained or --ckpt_path, not both" in capsys.readouterr().err
    assert main(["test", *words, "--pretrained", "nothing"]) == 1
    assert "no weights named 'nothing'" in capsys.readouterr().err
