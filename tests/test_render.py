import errno
import os
import sys

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from convlstm.render import drawing, forecast_frames, save_gif, save_mp4, save_strip

BORDERS = {"context": drawing.CONTEXT, "truth": drawing.TRUTH, "forecast": drawing.FORECAST}


def clip(steps, channels=1, height=16, width=16, seed=0):
    """Random floats in [0, 1]: no two frames alike."""
    return np.random.default_rng(seed).random((steps, channels, height, width), np.float32)


def drawn(frame):
    """What a (C, H, W) frame of floats looks like as (H, W, 3) in 0 to 255."""
    pixels = np.rint(frame * 255).astype(np.int64).transpose(1, 2, 0)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def framed(picture, colour, height, width):
    """Find the pictures of height x width whose border has that colour, from left to right."""
    mask = (picture == colour).all(-1).astype(np.int64)

    def count(height, width):
        """Pixels of the colour in each window, by its upper left corner."""
        total = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        left, right = total[:, :-width], total[:, width:]
        return right[height:] - right[:-height] - left[height:] + left[:-height]

    inner = count(height, width)[1:-1, 1:-1]
    ring = count(height + 2, width + 2) - inner
    columns, rows = np.nonzero(((ring == 2 * (height + width) + 4) & (inner < height * width)).T)
    return [
        picture[row + 1 : row + 1 + height, column + 1 : column + 1 + width]
        for column, row in zip(columns, rows, strict=True)
    ]


def one_pixel_each(picture, scale):
    """Undo an enlargement and assert that it was nearest-neighbour."""
    small = picture[::scale, ::scale]
    np.testing.assert_array_equal(picture, small.repeat(scale, axis=0).repeat(scale, axis=1))
    return small.astype(np.int64)


def test_animation_has_a_frame_for_each_time():
    frames = forecast_frames(clip(3), clip(5))
    assert frames.dtype == np.uint8
    assert frames.shape[0] == 8
    assert frames.shape[3] == 3
    assert len({frame.tobytes() for frame in frames}) == 8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "scale"), [(16, 16, 3), (8, 21, 2), (23, 5, 4)])
def test_panels_show_every_pixel_enlarged(channels, height, width, scale):
    shape = (channels, height, width)
    context, forecast, truth = (clip(2, *shape, seed=seed) for seed in range(3))
    frames = forecast_frames(context, forecast, truth, scale=scale)
    for t, frame in enumerate(frames):
        if t < 2:
            panels = framed(frame, BORDERS["context"], height * scale, width * scale)
            expected = [context[t], context[t]]
        else:
            panels = [
                panel
                for name in ("truth", "forecast")
                for panel in framed(frame, BORDERS[name], height * scale, width * scale)
            ]
            expected = [truth[t - 2], forecast[t - 2]]
        assert len(panels) == 2
        for panel, source in zip(panels, expected, strict=True):
            np.testing.assert_array_equal(one_pixel_each(panel, scale), drawn(source))


def test_truth_stands_at_the_left():
    frame = forecast_frames(clip(1), clip(1), clip(1))[-1]
    columns = {
        name: np.nonzero((frame == BORDERS[name]).all(-1).any(0))[0]
        for name in ("truth", "forecast")
    }
    assert columns["truth"].max() < columns["forecast"].min()


@pytest.mark.parametrize("truth", [None, clip(4)])
def test_borders_change_colour_exactly_where_the_forecast_begins(truth):
    frames = forecast_frames(clip(3), clip(4), truth)
    for t, frame in enumerate(frames):
        shown = {
            name: (frame == colour).all(-1).sum() > 1000  # more than letters have
            for name, colour in BORDERS.items()
        }
        began = t >= 3
        assert shown == {
            "context": not began,
            "truth": began and truth is not None,
            "forecast": began,
        }


def test_default_scale_is_the_least_that_reaches_192_pixels():
    for side, scale in [(64, 3), (48, 4), (8, 24), (100, 2), (192, 1), (300, 1)]:
        (panel,) = framed(
            forecast_frames(clip(1, 1, side, side), clip(1, 1, side, side))[1],
            BORDERS["forecast"],
            side * scale,
            side * scale,
        )
        assert panel.shape == (side * scale, side * scale, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 8), (100, 3)])
def test_header_of_tiny_frames_is_not_cut(height, width):
    small = clip(12, 1, height, width)
    tiny = forecast_frames(small, small, small, scale=1)
    large = forecast_frames(*3 * [clip(12, 1, 64, 192)], scale=1)
    background = np.array(drawing.BACKGROUND)
    for t in (0, 11, 12, 23):
        inked = [
            (frames[t][: frames.shape[1] - 12 - rows - 6] != background).any(-1)
            for frames, rows in ((tiny, height), (large, 64))
        ]
        assert inked[0].sum() == inked[1].sum() > 0  # the same letters
        assert not inked[0][:, :12].any()  # and a margin at both sides
        assert not inked[0][:, -12:].any()


def test_truth_that_ends_early_leaves_its_panel_empty():
    with_all = forecast_frames(clip(1), clip(3), clip(3, seed=1))
    with_one = forecast_frames(clip(1), clip(3), clip(3, seed=1)[:1])
    np.testing.assert_array_equal(with_one[:2], with_all[:2])
    for t in (2, 3):
        assert not (with_one[t] == BORDERS["truth"]).all(-1).any()
        assert (with_one[t] == drawing.EMPTY).all(-1).mean() > 0.3
        assert len(framed(with_one[t], BORDERS["forecast"], 192, 192)) == 1


def test_truth_beyond_the_forecast_is_cut():
    truth = clip(6)
    np.testing.assert_array_equal(
        forecast_frames(clip(1), clip(2), truth), forecast_frames(clip(1), clip(2), truth[:2])
    )


def test_types_of_pixels_may_differ_and_mean_the_same():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = forecast_frames(levels, levels, levels)
    wide = levels.astype(np.uint16) * 257
    exact = levels / 255
    np.testing.assert_array_equal(forecast_frames(wide, exact, torch.from_numpy(levels)), expected)
    np.testing.assert_array_equal(
        forecast_frames(torch.from_numpy(wide), exact.astype(np.float32), levels), expected
    )
    parameter = torch.nn.Parameter(torch.from_numpy(exact))
    np.testing.assert_array_equal(forecast_frames(levels, parameter, levels), expected)


def test_half_precision_is_drawn():
    halves = torch.tensor([0.0, 0.25, 0.5, 1.0]).reshape(1, 1, 2, 2)  # exact in every type
    expected = forecast_frames(halves, halves)
    for kind in (torch.bfloat16, torch.float16):
        np.testing.assert_array_equal(forecast_frames(halves, halves.to(kind)), expected)


def test_floats_are_clipped_to_black_and_white():
    wild = np.array([-np.inf, -3, 7, np.inf], np.float32).reshape(1, 1, 2, 2)
    tame = np.array([0, 0, 1, 1], np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(forecast_frames(tame, wild), forecast_frames(tame, tame))


def test_inputs_are_not_changed():
    context, forecast = clip(2), clip(2) * 3 - 1
    before = context.copy(), forecast.copy()
    forecast_frames(context, forecast)
    np.testing.assert_array_equal(context, before[0])
    np.testing.assert_array_equal(forecast, before[1])


def test_gif_keeps_gray_levels_within_two(tmp_path):
    # All 256 levels, more than a palette with the borders' colours has room for.
    context = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=0)
    forecast = np.flip(context, axis=-1)
    save_gif(tmp_path / "a.gif", context, forecast, forecast, scale=2)
    frames = iio.imread(tmp_path / "a.gif", index=...)
    assert len(frames) == 6
    for t, frame in enumerate(frames):
        names = ("context",) if t < 3 else ("truth", "forecast")
        panels = [panel for name in names for panel in framed(frame, BORDERS[name], 32, 32)]
        assert len(panels) == 2
        source = (context if t < 3 else forecast)[0, 0]
        for panel in panels:
            small = one_pixel_each(panel, 2)
            assert (small == small[..., :1]).all()
            assert np.abs(small[..., 0] - source.astype(np.int64)).max() <= 2


def test_gif_of_few_colours_is_exact(tmp_path):
    choices = np.random.default_rng(0).integers(0, 256, (200, 3), np.uint8)
    frames = choices[np.random.default_rng(1).integers(0, 200, (4, 16, 16))].transpose(0, 3, 1, 2)
    save_gif(tmp_path / "a.gif", frames[:2], frames[2:], scale=2)
    decoded = iio.imread(tmp_path / "a.gif", index=...)
    drawn_frames = forecast_frames(frames[:2], frames[2:], scale=2)
    for t, border in enumerate(["context", "context", "forecast", "forecast"]):
        (got,) = framed(decoded[t], BORDERS[border], 32, 32)
        (expected,) = framed(drawn_frames[t], BORDERS[border], 32, 32)
        np.testing.assert_array_equal(got, expected)


def test_gif_keeps_the_colours_of_small_things_on_a_many_coloured_ground(tmp_path):
    rows, columns = np.mgrid[:64, :64] / 63
    ground = np.stack([rows * 0.5, columns * 0.5, (rows + columns) * 0.25])[None].repeat(4, axis=0)
    ground += np.random.default_rng(0).normal(0, 0.02, ground.shape)
    ball = np.array([1.0, 0.9, 0.0])
    ground[:, :, 10:16, 10:16] = ball[:, None, None]
    ground = ground.clip(0, 1)
    save_gif(tmp_path / "a.gif", ground[:2], ground[2:], scale=1)
    frame = iio.imread(tmp_path / "a.gif", index=3)
    (panel,) = framed(frame, BORDERS["forecast"], 64, 64)
    error = np.linalg.norm(panel - drawn(ground[3]), axis=-1)
    assert error[10:16, 10:16].max() < 25  # of 441: still that yellow
    assert error.mean() < 12


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_every_frame_even_of_a_still(tmp_path, channels):
    still = np.zeros((12, channels, 8, 8), np.uint8)
    save_gif(tmp_path / "a.gif", still, still, still)
    assert len(iio.imread(tmp_path / "a.gif", index=...)) == 24


def test_gif_loops_at_its_speed_and_rests_on_the_last_frame(tmp_path):
    save_gif(tmp_path / "a.gif", clip(2), clip(2), fps=8)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0  # forever
        durations = []
        for t in range(gif.n_frames):
            gif.seek(t)
            durations.append(gif.info["duration"])
    assert durations[:3] == [120, 120, 120]  # 125 ms in hundredths of a second
    assert durations[3] >= 1000


def test_gif_of_moving_shapes_stays_small(tmp_path):
    frames = np.zeros((20, 1, 64, 64), np.float32)
    rows, columns = np.mgrid[:64, :64]
    for t, frame in enumerate(frames):
        ring = np.hypot(rows - 20 - t, columns - 10 - 2 * t) - 9
        frame[0] = np.clip(3 - np.abs(ring), 0, 1)
    save_gif(tmp_path / "a.gif", frames[:10], frames[10:], frames[10:])
    assert (tmp_path / "a.gif").stat().st_size < 300_000


@pytest.mark.parametrize(("width", "fps"), [(16, 5), (15, 12.5)])  # odd ones get a pixel more
def test_mp4_shows_the_animation_at_its_speed(tmp_path, width, fps):
    rows, columns = np.mgrid[:17, :width] / 17
    colours = np.stack([rows, columns, 1 - rows])[None].repeat(3, axis=0).clip(0, 1)
    context, forecast, truth = colours, 1 - colours, colours[:2]
    save_mp4(tmp_path / "a.mp4", context, forecast, truth, fps=fps)
    expected = forecast_frames(context, forecast, truth)
    with av.open(tmp_path / "a.mp4") as video:
        (stream,) = video.streams
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == fps
        assert float(stream.duration * stream.time_base) == pytest.approx(6 / fps)
        got = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(stream)])
    height, width = expected.shape[1:3]
    assert got.shape == (6, height + height % 2, width + width % 2, 3)
    error = np.abs(got[:, :height, :width].astype(np.int64) - expected)
    # H.264 is lossy, and its colours have half the resolution, which shows at the borders.
    assert np.median(error) <= 2
    assert np.quantile(error, 0.9) < 10  # channels or panels in another order: above 100
    assert np.abs(got[:, height:].astype(np.int64) - drawing.BACKGROUND).max(initial=0) < 8


def test_what_h264_cannot_hold_is_told(tmp_path):
    wide = np.zeros((2, 1, 8, 17_000), np.float32)
    with pytest.raises(ValueError, match=r"a\.mp4: frames of .* cannot be encoded as H\.264"):
        save_mp4(tmp_path / "a.mp4", wide, wide)
    assert not list(tmp_path.iterdir())


def test_mp4_without_pyav_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"a\.mp4: .* pip install av"):
        save_mp4(tmp_path / "a.mp4", clip(1), clip(1))
    assert list(tmp_path.iterdir()) == []


def test_suffix_in_capitals_will_do(tmp_path):
    save_gif(tmp_path / "A.GIF", clip(1), clip(1))
    save_strip(tmp_path / "A.PNG", clip(1), clip(1))
    assert iio.imread(tmp_path / "A.GIF", index=...).shape[0] == 2
    assert iio.imread(tmp_path / "A.PNG").ndim == 3


@pytest.mark.parametrize("channels", [1, 3])
def test_strip_has_rows_of_context_truth_and_forecast(tmp_path, channels):
    clips = {name: clip(4, channels, seed=seed) for seed, name in enumerate(BORDERS)}
    save_strip(tmp_path / "a.png", clips["context"], clips["forecast"], clips["truth"])
    strip = iio.imread(tmp_path / "a.png")
    for name, source in clips.items():
        cells = framed(strip, BORDERS[name], 64, 64)
        assert len(cells) == 4
        for cell, frame in zip(cells, source, strict=True):
            np.testing.assert_array_equal(one_pixel_each(cell, 4), drawn(frame))


def test_strip_aligns_truth_and_forecast(tmp_path):
    save_strip(tmp_path / "a.png", clip(2), clip(5), clip(3))
    strip = iio.imread(tmp_path / "a.png")
    starts = {}
    for name in ("truth", "forecast"):
        mask = (strip == BORDERS[name]).all(-1)
        full = np.nonzero(mask.sum(0) >= 70)[0]  # columns that are side borders
        starts[name] = full.reshape(-1, 2 * drawing.BORDER)[:, 0].tolist()
    assert len(starts["forecast"]) == 5
    assert starts["truth"] == starts["forecast"][:3]
    assert (strip == drawing.EMPTY).all(-1).sum() > 2 * 60 * 60  # and two cells are empty


@pytest.mark.parametrize(("steps", "columns"), [(50, 20), (21, 20), (20, 20), (7, 2), (3, 2)])
def test_long_strips_are_thinned_and_keep_both_ends(tmp_path, steps, columns):
    frames = np.linspace(0, 100, steps).astype(np.uint8)[:, None, None, None] + np.zeros(
        (1, 1, 16, 16), np.uint8
    )
    save_strip(tmp_path / "a.png", frames, frames, columns=columns)
    strip = iio.imread(tmp_path / "a.png")
    for name in ("context", "forecast"):
        levels = [int(cell[0, 0, 0]) for cell in framed(strip, BORDERS[name], 64, 64)]
        times = [frames[:, 0, 0, 0].tolist().index(level) for level in levels]
        assert 2 <= len(times) <= columns
        assert (times[0], times[-1]) == (0, steps - 1)
        if steps <= columns:
            assert times == list(range(steps))
        assert len(set(np.diff(times)[:-1])) <= 1  # equal steps, but for the last


def test_large_frames_are_shrunk_in_the_strip_unless_scale_is_given(tmp_path):
    large = np.full((1, 1, 300, 601), 90, np.uint8)
    save_strip(tmp_path / "a.png", large, large)
    (cell,) = framed(iio.imread(tmp_path / "a.png"), BORDERS["forecast"], 100, 201)
    assert (cell == 90).all()
    save_strip(tmp_path / "a.png", large, large, scale=1)
    assert framed(iio.imread(tmp_path / "a.png"), BORDERS["forecast"], 300, 601)


@pytest.mark.parametrize(
    ("save", "name"), [(save_gif, "a.gif"), (save_mp4, "a.mp4"), (save_strip, "a.png")]
)
def test_failed_write_keeps_the_old_picture(tmp_path, monkeypatch, save, name):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path / name, clip(1), clip(1))
    old = (tmp_path / name).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=name):
        save(tmp_path / name, clip(1, seed=1), clip(1, seed=1))
    assert (tmp_path / name).read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("context", "forecast", "truth", "message"),
    [
        (clip(2)[0], clip(2), None, r"context has shape \(1, 16, 16\), expected \(time"),
        (clip(2), clip(2)[None], None, r"forecast has shape \(1, 2, 1, 16, 16\), expected"),
        (clip(2, 2), clip(2, 2), None, "context has 2 channels, expected 1"),
        (clip(2), clip(2), clip(2, 4), "truth has 4 channels, expected 1"),
        (clip(2), clip(2, 3), None, r"forecast frames are \(3, 16, 16\), expected \(1, 16, 16\)"),
        (clip(2), clip(2), clip(2, 1, 8), r"truth frames are \(1, 8, 16\), expected"),
        (clip(0), clip(2), None, "context has shape .* at least one frame"),
        (clip(2), clip(0), None, "forecast has shape .* at least one frame"),
        (clip(2), clip(2), clip(0), "truth has shape .* at least one frame"),
        (clip(2), clip(2).astype(np.int64), None, "forecast has type int64, expected uint8"),
    ],
)
def test_wrong_clips_are_named(tmp_path, context, forecast, truth, message):
    for call in (
        lambda: forecast_frames(context, forecast, truth),
        lambda: save_gif(tmp_path / "a.gif", context, forecast, truth),
        lambda: save_mp4(tmp_path / "a.mp4", context, forecast, truth),
        lambda: save_strip(tmp_path / "a.png", context, forecast, truth),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_nan_is_named_with_its_frame():
    broken = clip(4)
    broken[2, 0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="forecast frame 2 is NaN"):
        forecast_frames(clip(1), broken)


@pytest.mark.parametrize("scale", [0, -1, 1.5, float("nan")])
def test_wrong_scale_is_named(tmp_path, scale):
    with pytest.raises(ValueError, match=f"scale is {scale}, expected a whole number"):
        forecast_frames(clip(1), clip(1), scale=scale)
    with pytest.raises(ValueError, match=f"scale is {scale}, expected a whole number"):
        save_strip(tmp_path / "a.png", clip(1), clip(1), scale=scale)


@pytest.mark.parametrize("fps", [0, -5, 51, float("nan"), float("inf")])
def test_wrong_speed_is_named(tmp_path, fps):
    for save, name in ((save_gif, "a.gif"), (save_mp4, "a.mp4")):
        with pytest.raises(ValueError, match=f"fps is {fps}, expected"):
            save(tmp_path / name, clip(1), clip(1), fps=fps)


def test_wrong_number_of_columns_is_named(tmp_path):
    with pytest.raises(ValueError, match="columns is 1, expected a whole number of 2"):
        save_strip(tmp_path / "a.png", clip(1), clip(1), columns=1)


def test_wrong_suffix_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png'?, expected a name that ends in \.gif"):
        save_gif(tmp_path / "a.png", clip(1), clip(1))
    with pytest.raises(ValueError, match=r"a\.gif'?, expected a name that ends in \.png"):
        save_strip(tmp_path / "a.gif", clip(1), clip(1))
    with pytest.raises(ValueError, match=r"a\.gif'?, expected a name that ends in \.mp4"):
        save_mp4(tmp_path / "a.gif", clip(1), clip(1))


def test_a_gif_wider_than_the_format_allows_is_refused(tmp_path):
    clip = np.zeros((1, 1, 4, 66000), dtype=np.uint8)
    with pytest.raises(ValueError, match="a GIF holds at most 65,535 pixels a side"):
        save_gif(tmp_path / "wide.gif", clip, clip, scale=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fps", "hundredths"), [(15, 7), (30, 3), (7, 14)])
def test_durations_are_rounded_to_hundredths_of_a_second(tmp_path, fps, hundredths):
    save_gif(tmp_path / "a.gif", clip(2), clip(2), fps=fps)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["duration"] == 10 * hundredths


def test_truth_beyond_the_forecast_takes_no_colours(tmp_path):
    context, forecast, truth = clip(2, 3), clip(3, 3, seed=1), clip(9, 3, seed=2)
    for name, shown in (("all", truth), ("cut", truth[:3])):
        save_gif(tmp_path / f"{name}.gif", context, forecast, shown)
    assert (tmp_path / "all.gif").read_bytes() == (tmp_path / "cut.gif").read_bytes()
