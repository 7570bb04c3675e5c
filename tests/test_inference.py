import re
import threading

import numpy as np
import pytest
import torch

from convlstm import VideoPredictor

KINDS = ["unconditional", "autoregressive"]
CELLS = ["lstm", "gru", "rnn"]


def build(**options):
    return VideoPredictor(**{"patch_size": 2, "hidden_sizes": [4], **options})


def staged(kind, cell="lstm", **options):
    """A model of two stages, in double precision, and two clips whose odd frames it pads."""
    model = build(hidden_sizes=[3, 4], downsample=[1, 2], forecaster=kind, cell=cell, **options)
    clips = torch.rand(2, 6, 1, 13, 10, dtype=torch.float64)
    with torch.no_grad():  # so that the forecasts are not clipped
        if model.network.residual:
            model.network.head.weight.normal_(std=0.1)
            clips = 0.25 + clips / 2
        else:
            model.network.head.bias.fill_(0.5)
    return model.double(), clips


@pytest.mark.parametrize("forecaster", ["unconditional", "autoregressive"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_forecast_needs_only_a_clip_and_gives_frames_in_zero_to_one(forecaster, loss):
    model = build(forecaster=forecaster, loss=loss)
    with torch.no_grad():
        model.network.head.bias.fill_(0.9)  # so that a linear output leaves [0, 1]
        model.network.head.weight.mul_(30)
    clip = torch.rand(5, 1, 9, 7)
    frames = model.forecast(clip, steps=12)
    assert frames.shape == (12, 1, 9, 7)
    assert frames.dtype == torch.float32
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert not frames.requires_grad
    raw = model(clip[None], 12)[0]
    assert loss == "cross_entropy" or raw.max() > 1
    torch.testing.assert_close(frames, raw.detach().clamp(0, 1))


def test_integers_floats_and_batches_are_the_same_clip():
    model = build()
    eight = torch.randint(0, 256, (2, 4, 1, 8, 8), dtype=torch.uint8)
    expected = model.forecast(eight.float() / 255, 3)
    sixteen = (eight.to(torch.int32) * 257).to(torch.uint16)
    for clip in (eight, sixteen, eight.double() / 255):
        torch.testing.assert_close(model.forecast(clip, 3), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.forecast(eight[1], 3), expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_a_forecast_leaves_every_modules_mode_as_it_was(training):
    model = build().train(training)
    model.network.head.eval()  # as one who freezes a part would have it
    before = [module.training for module in model.modules()]
    seen = []
    model.network.register_forward_hook(lambda module, *_: seen.append(module.training))
    model.forecast(torch.rand(4, 1, 8, 8), 2)
    assert seen == [False]
    assert [module.training for module in model.modules()] == before


def test_forecasts_in_threads_leave_the_mode_as_it_was():
    model, clip = build().train(), torch.rand(4, 1, 8, 8)
    inside, leave = threading.Event(), threading.Event()
    modes = []

    def wait(module, *_):
        if not inside.is_set():  # the first of two forecasts is held here until the second ends
            inside.set()
            leave.wait(10)
        modes.append(module.training)

    model.network.register_forward_hook(wait)
    first = threading.Thread(target=model.forecast, args=(clip, 1))
    first.start()
    assert inside.wait(10)
    model.forecast(clip, 1)
    leave.set()
    first.join()
    assert modes == [False, False]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("clip", "named"),
    [
        (torch.rand(4, 3, 8, 8), r"\(T, 1, H, W\).*\(4, 3, 8, 8\)"),
        (torch.rand(1, 8, 8), r"got shape \(1, 8, 8\)"),
        (torch.rand(0, 1, 8, 8), "T >= 1"),
        (torch.full((4, 1, 8, 8), torch.nan), "NaN"),
        (torch.rand(4, 1, 8, 8) * 255, "from .* to 25"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_clips_that_are_none_raise_naming_what_is_wrong(clip, named):
    with pytest.raises(ValueError, match=named):
        build().forecast(clip, 2)


def test_masked_pixels_have_no_values():
    clip = np.ma.masked_greater(np.random.default_rng(0).random((4, 1, 8, 8)), 0.9)
    with pytest.raises(ValueError, match=r"masked: .* frames\.filled\(0\)"):
        build().forecast(clip, 2)
    model, whole = build(), np.ma.array(clip.filled(0))
    assert (model.forecast(whole, 2) == model.forecast(whole.data, 2)).all()


@pytest.mark.parametrize("state", [None, torch.rand(4, 1, 8, 8)])
def test_a_stream_begins_with_begin(state):
    model = build()
    for call in (lambda: model.observe(state, torch.rand(1, 8, 8)), lambda: model.step(state)):
        with pytest.raises(TypeError, match=r"which begin\(\) returns, got a"):
            call()


def test_rounding_may_leave_the_range():
    clip = torch.rand(4, 1, 8, 8)
    clip[0, 0, 0, :2] = torch.tensor([-1e-6, 1 + 1e-6])
    assert build().forecast(clip, 2).shape == (2, 1, 8, 8)


def test_steps_may_be_numpys():
    clip = torch.rand(4, 1, 8, 8)
    model = build()
    assert torch.equal(model.forecast(clip, np.int64(2)), model.forecast(clip, 2))


@pytest.mark.parametrize("steps", [0, 2.5, "3", None])
def test_a_forecast_has_a_whole_number_of_steps(steps):
    with pytest.raises(ValueError, match=rf"whole number >= 1, got {steps!r}"):
        build().forecast(torch.rand(4, 1, 8, 8), steps)


def test_arrays_in_arrays_out():
    model = build()
    clip = np.random.default_rng(0).integers(0, 256, (5, 1, 9, 7), dtype=np.uint8)
    expected = model.forecast(torch.from_numpy(clip), 3).numpy()
    clip.flags.writeable = False  # as of a file that is mapped into memory
    for same in (
        clip,
        clip[::-1].copy()[::-1],
        (clip * np.uint16(257)).astype(">u2"),
        (clip / 255).astype(np.float64),
    ):
        forecast = model.forecast(same, 3)
        assert isinstance(forecast, np.ndarray)
        assert forecast.dtype == np.float32
        np.testing.assert_allclose(forecast, expected, rtol=0, atol=1e-6)
    assert model.forecast(clip[None], 3).shape == (1, 3, 1, 9, 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_stream_forecasts_what_forecast_does(kind, cell, residual):
    model, clips = staged(kind, cell, residual=residual)
    expected = model.forecast(clips, 5)
    state = model.begin(clips)
    frames = []
    for _ in range(5):
        frame, state = model.step(state)
        frames.append(frame)
    assert 0 < expected.min() < expected.max() < 1
    torch.testing.assert_close(torch.stack(frames, 1), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_camera_forecasts_at_any_time_what_forecast_does_from_all_its_frames(
    kind, cell, residual
):
    model, clips = staged(kind, cell, residual=residual)
    state = model.begin(clips[:, :2])
    for t in range(2, 6):
        expected = model.forecast(clips[:, :t], 3)
        torch.testing.assert_close(model.forecast(state, 3), expected, rtol=0, atol=1e-7)
        frame, ahead = model.step(state)  # looking ahead leaves the state as it is, and
        torch.testing.assert_close(frame, expected[:, 0], rtol=0, atol=1e-7)
        rest = model.forecast(ahead, 2)
        torch.testing.assert_close(rest, expected[:, 1:], rtol=0, atol=1e-7)
        state = model.observe(ahead, clips[:, t])  # the next frame follows the one before it
    at_once = model.observe(model.begin(clips[:, :2]), clips[:, 2:])
    expected = model.forecast(clips, 3)
    for same in (state, at_once):
        torch.testing.assert_close(model.forecast(same, 3), expected, rtol=0, atol=1e-7)


def test_a_stream_with_attention_looks_back_at_all_that_was_observed():
    model, clips = staged("unconditional", attention=3)
    state = model.observe(model.begin(clips[:, :4]), clips[:, 4:])
    frame, ahead = model.step(state)
    expected = model.forecast(clips, 3)
    torch.testing.assert_close(frame, expected[:, 0], rtol=0, atol=1e-7)
    torch.testing.assert_close(model.forecast(ahead, 2), expected[:, 1:], rtol=0, atol=1e-7)


def test_a_stream_that_reads_both_ways_can_look_ahead_but_not_read_on():
    model, clips = staged("unconditional", bidirectional=True)
    frame, ahead = model.step(model.begin(clips))
    expected = model.forecast(clips, 3)
    torch.testing.assert_close(frame, expected[:, 0], rtol=0, atol=1e-7)
    torch.testing.assert_close(model.forecast(ahead, 2), expected[:, 1:], rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="bidirectional encoder"):
        model.observe(ahead, clips[:, 0])


def test_a_stream_of_one_clip_takes_and_gives_frames_without_a_batch_axis():
    model = build(channels=3)
    clip = np.random.default_rng(0).integers(0, 256, (5, 3, 9, 7), dtype=np.uint8)
    state = model.begin(clip[:3])
    state = model.observe(model.observe(state, clip[3]), clip[4:])
    frame, _ = model.step(state)
    assert isinstance(frame, np.ndarray)
    assert frame.shape == (3, 9, 7)
    expected = model.forecast(clip, 4)
    np.testing.assert_allclose(model.forecast(state, 4), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(frame, expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_a_stream_grows_neither_with_the_frames_observed_nor_with_those_forecast(kind, residual):
    model, clips = staged(kind, residual=residual)

    def held(state):
        parts = [
            part
            for carry in (state.seen, state.ahead)
            for part in (
                carry.last,
                *([carry.anchor] if residual else []),
                *(part for pair in carry.states for part in pair),
            )
        ]
        return sum(
            {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parts}.values()
        )

    begun = model.begin(clips)
    _, stepped = model.step(begun)
    state = stepped
    for _ in range(3):
        state = model.observe(state, clips)
        assert held(state) == held(begun)
        for _ in range(3):
            _, state = model.step(state)
            assert held(state) == held(stepped)


def test_a_stream_leaves_every_modules_mode_as_it_was_and_has_no_gradient():
    model, clips = staged("unconditional")
    model.train()
    model.network.head.eval()
    before = [module.training for module in model.modules()]
    frame, state = model.step(model.observe(model.begin(clips), clips))
    assert [module.training for module in model.modules()] == before
    assert not frame.requires_grad
    assert not state.ahead.last.requires_grad


@pytest.mark.parametrize(
    ("frames", "error", "named"),
    [
        (torch.rand(1, 9, 9), ValueError, r"frames of \(8, 8\) as before, got 1 of \(9, 9\)"),
        (torch.rand(3, 8, 8), ValueError, r"a frame \(1, H, W\).* got shape \(3, 8, 8\)"),
        (torch.rand(2, 4, 1, 8, 8), ValueError, r"as the stream began, got .*\(2, 4, 1, 8, 8\)"),
        (torch.full((1, 8, 8), torch.nan), ValueError, "NaN"),
        ([[[0.0]]], TypeError, "array or a tensor, got list"),
    ],
)
def test_frames_that_do_not_follow_raise_naming_what_is_wrong(frames, error, named):
    model = build()
    state = model.begin(torch.rand(4, 1, 8, 8))
    with pytest.raises(error, match=named):
        model.observe(state, frames)


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (3, 1, 0, 8), (3, 1, 8, 0), (2, 3, 1, 8, 0)])
def test_clips_without_pixels_raise_naming_their_shape(shape):
    with pytest.raises(ValueError, match=f"got shape {re.escape(str(shape))}"):
        build().forecast(torch.rand(shape), 2)


def test_streams_that_go_side_by_side_stay_as_many():
    model = build()
    state = model.begin(torch.rand(2, 4, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected 2 clips .* got 3 of"):
        model.observe(state, torch.rand(3, 1, 8, 8))


@pytest.mark.parametrize("dtype", [np.int64, bool, np.complex64, object])
def test_arrays_of_other_pixels_raise_naming_their_type(dtype):
    with pytest.raises(ValueError, match="pixels must be uint8, uint16 or floats"):
        build().forecast(np.zeros((4, 1, 8, 8), dtype=dtype), 2)


@pytest.mark.parametrize("kind", ["unconditional", "autoregressive"])
def test_a_stream_of_probabilities_forecasts_what_forecast_does(kind):
    model, clip = build(forecaster=kind, loss="cross_entropy"), torch.rand(4, 1, 8, 8)
    frame, ahead = model.step(model.begin(clip))
    expected = model.forecast(clip, 3)
    torch.testing.assert_close(frame, expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(model.forecast(ahead, 2), expected[1:], rtol=0, atol=1e-6)


def test_a_forecast_that_is_refused_leaves_the_mode_as_it_was():
    model = build().train()
    with pytest.raises(ValueError, match="NaN"):
        model.forecast(torch.full((4, 1, 8, 8), torch.nan), 2)
    assert all(module.training for module in model.modules())
    model.eval().forecast(torch.rand(4, 1, 8, 8), 2)
    assert not model.training
