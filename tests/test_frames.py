"""Whether a model takes the frames that the data has."""

import pytest

from convlstm import VideoPredictor
from convlstm.cli.frames import check_frames
from datamodules import ClipDataModule, MovingMNISTDataModule, VideoDataModule

GRAY = VideoPredictor(hidden_sizes=[2])
FULL = VideoPredictor(hidden_sizes=[2], peephole="full", frame_size=[32, 48])


@pytest.mark.parametrize(
    ("model", "data", "trained", "says"),
    [
        (GRAY, ClipDataModule(), True, "channels, the data has 3: give --data.channels 1$"),
        (GRAY, ClipDataModule(), False, "--data.channels 1 or --model.channels 3$"),
        (VideoPredictor(3), MovingMNISTDataModule(), False, "has 1: give --model.channels 1$"),
        (VideoPredictor(3), MovingMNISTDataModule(), True, "choose other data"),
        (
            FULL,
            MovingMNISTDataModule(),
            True,
            r"32 x 48 pixels, the data has 64 x 64: give --data.frame_size \[32,48\]$",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(model, data, trained, says):
    with pytest.raises(ValueError, match=says):
        check_frames(model, data, trained)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (GRAY, MovingMNISTDataModule()),
        (GRAY, MovingMNISTDataModule(frame_size=[40, 30])),  # any size
        (GRAY, ClipDataModule(channels=1)),
        (FULL, ClipDataModule(channels=1, frame_size=[32, 48])),
        (FULL, VideoDataModule()),  # which does not say
    ],
)
def test_what_fits_passes(model, data):
    check_frames(model, data, trained=True)
