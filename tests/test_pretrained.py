import numpy as np
import pytest
import torch

import convlstm
from convlstm import VideoPredictor
from convlstm.pretrained import HERE, NAMES, example_clips, find_weights
from datamodules import read_clip


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_forecast_clips_better_than_their_last_frame_at_every_lead_time(name):
    model = VideoPredictor.from_pretrained(name)
    known = model.hparams["context_length"]
    clips = np.stack([read_clip(path) for path in example_clips(name)])  # (N, T, C, H, W)
    context, truth = np.split(clips, [known], axis=1)
    forecast = model.forecast(context, truth.shape[1])
    still = np.broadcast_to(context[:, -1:] / 255, truth.shape)
    ours, theirs = (np.square(x - truth / 255).mean((0, 2, 3, 4)) for x in (forecast, still))
    assert len(clips) >= 4
    assert (ours < 0.6 * theirs).all()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_have_a_model_card_and_are_small(name):
    assert (HERE / f"{name}.md").exists()
    assert find_weights(name).stat().st_size < 12 * 2**20


def test_load_takes_shipped_names():
    assert NAMES == ("moving-mnist",)
    clip = torch.zeros(10, 1, 64, 64)
    assert convlstm.load("moving-mnist").forecast(clip, 3).shape == (3, 1, 64, 64)


def test_options_of_training_replace_those_that_come_with_the_weights():
    model = VideoPredictor.from_pretrained("moving-mnist", learning_rate=1e-4, loss="mae")
    theirs = VideoPredictor.from_pretrained("moving-mnist")
    changed = {"learning_rate": 1e-4, "loss": "mae"}
    assert dict(model.hparams) == {**theirs.hparams, **changed}
    for name, weight in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)
    with pytest.raises(ValueError, match="weights and options differ"):
        VideoPredictor.from_pretrained("moving-mnist", hidden_sizes=[8, 8])


@pytest.mark.parametrize(
    ("option", "theirs"),
    [
        ({"loss": "cross_entropy"}, "loss 'mse'"),
        ({"residual": True}, "residual False"),
        ({"forecaster": "autoregressive"}, "forecaster 'unconditional'"),
    ],
)
def test_options_that_make_another_network_of_the_weights_are_refused(option, theirs):
    with pytest.raises(ValueError, match=f"these weights are of a network with {theirs}"):
        VideoPredictor.from_pretrained("moving-mnist", **option)


def test_a_subclass_builds_its_own_kind():
    class Predictor(VideoPredictor):
        pass

    assert type(Predictor.from_pretrained("moving-mnist")) is Predictor
