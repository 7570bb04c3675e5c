import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from convlstm import VideoPredictor
from convlstm.weights import read_weights, write_weights

OPTIONS = {"patch_size": 2, "hidden_sizes": [4], "forecaster": "autoregressive"}


@pytest.fixture
def model():
    return VideoPredictor(**OPTIONS)


@pytest.fixture
def path(tmp_path, model):
    path = tmp_path / "model.safetensors"
    write_weights(path, model.state_dict(), dict(model.hparams))
    return path


def test_what_is_written_is_read_again_to_the_bit(model, path):
    weights, options = read_weights(path)
    assert options == dict(model.hparams)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert load_file(path).keys() == weights.keys()  # as any reader of the format


def test_others_may_read_the_file_as_any_other(path):
    beside = path.with_name("beside")
    beside.touch()
    assert path.stat().st_mode == beside.stat().st_mode


def test_a_predictor_from_the_file_forecasts_the_same(model, path):
    again = VideoPredictor.from_pretrained(path)
    assert not again.training
    clip = torch.rand(3, 1, 9, 8)
    assert torch.equal(again.forecast(clip, 2), model.forecast(clip, 2))


def test_half_precision_halves_the_file_and_is_float32_again(tmp_path, model, path):
    small = tmp_path / "small.safetensors"
    write_weights(small, model.state_dict(), dict(model.hparams), torch.float16)
    weights, _ = read_weights(small)
    count = sum(weight.numel() for weight in weights.values())
    assert path.stat().st_size - small.stat().st_size == pytest.approx(2 * count, abs=200)
    for name, value in model.state_dict().items():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], value, rtol=2**-11, atol=2**-24)


def write_truncated(path):
    path.write_bytes(path.read_bytes()[:-10])


def write_text(path):
    path.write_text("no weights")


def write_no_options(path):
    save_file({"x": torch.zeros(1)}, path)


def write_other_options(path):
    weights, options = read_weights(path)
    write_weights(path, weights, {**options, "hidden_sizes": [5]})


def write_unknown_option(path):
    metadata = {"hyper_parameters": json.dumps({"hidden_colour": "blue"})}
    save_file({"x": torch.zeros(1)}, path, metadata=metadata)


@pytest.mark.parametrize(
    "damage",
    [write_truncated, write_text, write_no_options, write_other_options, write_unknown_option],
)
def test_what_is_no_predictor_is_refused_in_one_line_that_names_the_file(path, damage):
    damage(path)
    with pytest.raises(ValueError, match=r"model\.safetensors") as caught:
        VideoPredictor.from_pretrained(path)
    assert "\n" not in str(caught.value)


def test_what_is_neither_weights_nor_a_checkpoint_is_said_in_plain_words(tmp_path):
    with pytest.raises(ValueError, match="is a folder: name the checkpoint file in it"):
        VideoPredictor.from_pretrained(tmp_path)
    (tmp_path / "run.yaml").write_text("no weights")
    with pytest.raises(ValueError, match=r"run\.yaml is no checkpoint"):
        VideoPredictor.from_pretrained(tmp_path / "run.yaml")


def test_a_name_that_is_nowhere_is_said_with_the_names_that_are():
    with pytest.raises(FileNotFoundError, match=r"'moving-minst'.*moving-mnist"):
        VideoPredictor.from_pretrained("moving-minst")


@pytest.mark.parametrize("options", ["no JSON", "3", '["hidden_sizes"]'])
def test_options_that_are_none_are_refused(path, model, options):
    save_file(dict(model.state_dict()), path, metadata={"hyper_parameters": options})
    with pytest.raises(ValueError, match=r"model\.safetensors holds no options of a model"):
        read_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(path, model, value):
    before = path.read_bytes()
    weights, options = model.state_dict(), dict(model.hparams)
    weights["network.head.bias"][0] = value
    with pytest.raises(ValueError, match=r"model\.safetensors is not written, .*head\.bias is NaN"):
        write_weights(path, weights, options)
    assert path.read_bytes() == before
    save_file(weights, path, metadata={"hyper_parameters": json.dumps(options)})
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: .* NaN or infinite"):
        read_weights(path)


def test_an_option_out_of_range_names_the_file(path, model):
    write_weights(path, model.state_dict(), {**model.hparams, "loss": "gru"})
    with pytest.raises(ValueError, match=r"model\.safetensors: loss must be"):
        VideoPredictor.from_pretrained(path)


def test_a_folder_is_no_weights(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_weights(tmp_path)
