import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch._subclasses.fake_tensor import FakeTensorMode

from convlstm.metrics import METRICS, ForecastMetrics, cross_entropy, frame_metrics, ssim


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(7, 7), (16, 23)])
def test_each_frame_agrees_with_scikit_image_and_numpy(channels, size):
    generator = np.random.default_rng(0)
    truth = generator.random((2, 3, channels, *size), dtype=np.float32)
    forecast = truth + generator.normal(0, 0.4, truth.shape).astype(np.float32)  # leaves [0, 1]
    got = frame_metrics(torch.from_numpy(forecast), torch.from_numpy(truth))
    assert got.shape == (2, 3, len(METRICS))
    for b in range(2):
        for t in range(3):
            raw, x, y = forecast[b, t], forecast[b, t].clip(0, 1).astype(float), truth[b, t]
            y = y.astype(float)
            expected = [
                ((raw - y) ** 2).sum(),
                np.abs(raw - y).sum(),
                structural_similarity(x, y, data_range=1.0, channel_axis=0),
                structural_similarity(x, y, data_range=2.0, channel_axis=0),
                peak_signal_noise_ratio(y, x, data_range=1.0),
            ]
            np.testing.assert_allclose(got[b, t], expected, rtol=2e-6)


def test_ssim_of_nearly_flat_frames_does_not_lose_its_variance_to_rounding():
    x = np.full((16, 16), 0.9, dtype=np.float32)
    x[4:8, 4:8] += 1e-4
    y = x[::-1].copy()
    (got,) = ssim(torch.from_numpy(x)[None, None, None], torch.from_numpy(y)[None, None, None])
    expected = structural_similarity(x.astype(float), y.astype(float), data_range=1.0)
    assert got.item() == pytest.approx(expected, abs=1e-7)


def test_frames_smaller_than_the_window_have_no_ssim():
    values = frame_metrics(torch.zeros(1, 1, 1, 6, 9), torch.ones(1, 1, 1, 6, 9))
    assert values[0, 0, [2, 3]].isnan().all()
    assert values[0, 0, 0] == 54


def test_means_do_not_depend_on_how_the_clips_are_batched():
    forecast, truth = torch.rand(2, 7, 4, 1, 8, 8)
    whole, parts = ForecastMetrics(), ForecastMetrics()
    whole.update(forecast, truth)
    for piece in (slice(0, 1), slice(1, 5), slice(5, 7)):
        parts.update(forecast[piece], truth[piece])
    a, b = whole.summary(), parts.summary()
    table = frame_metrics(forecast, truth).double()
    for column, name in enumerate(METRICS):
        assert torch.equal(a[name], b[name])
        torch.testing.assert_close(a[name], table[..., column].mean())
        by_lead_time = a[f"{name}_by_lead_time"]
        assert torch.equal(by_lead_time, b[f"{name}_by_lead_time"])
        torch.testing.assert_close(by_lead_time, table[..., column].mean(0))


def test_perfect_frames_are_left_out_of_the_mean_psnr():
    truth = torch.zeros(2, 2, 1, 8, 8)
    forecast = truth.clone()
    forecast[0, 0] += 0.1  # 20 dB
    metrics = ForecastMetrics()
    metrics.update(forecast, truth)
    values = metrics.summary()
    assert values["psnr"].item() == pytest.approx(20, abs=1e-4)
    assert values["psnr_by_lead_time"].tolist() == pytest.approx([20, float("inf")], abs=1e-4)


def test_an_infinite_error_makes_the_mean_infinite():
    truth = torch.rand(2, 3, 1, 8, 8)
    forecast = truth.clone()
    forecast[0, 1, 0, 0, 0] = torch.inf
    forecast[1, 2] = 1e20  # whose square is beyond float32
    metrics = ForecastMetrics()
    metrics.update(forecast, truth)
    values = metrics.summary()
    assert values["mse"] == torch.inf
    assert values["mse_by_lead_time"].tolist() == [0, torch.inf, torch.inf]
    assert values["mae"] == torch.inf


def test_cross_entropy_of_no_number_is_no_number():
    frames = torch.full((2, 1, 1, 2, 2), 0.5)
    frames[0, 0, 0, 0, 0] = torch.nan
    assert cross_entropy(frames, torch.zeros_like(frames)).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_can_be_had_under_the_autocast_of_a_gpu(dtype):
    with FakeTensorMode():
        frames = torch.empty(2, 3, 1, 8, 8, device="cuda")
        torch.set_autocast_enabled("cuda", True)
        try:
            assert cross_entropy(frames.to(dtype), frames).dtype == torch.float32
        finally:
            torch.set_autocast_enabled("cuda", False)


def test_reset_forgets():
    metrics = ForecastMetrics()
    metrics.update(torch.ones(1, 1, 1, 8, 8), torch.zeros(1, 1, 1, 8, 8))
    metrics.reset()
    metrics.update(torch.zeros(1, 1, 1, 8, 8), torch.zeros(1, 1, 1, 8, 8))
    assert metrics.summary()["mse"] == 0


def test_the_mean_of_no_clip_is_nan():
    metrics = ForecastMetrics()
    metrics.update(torch.zeros(0, 2, 1, 8, 8), torch.zeros(0, 2, 1, 8, 8))
    assert metrics.compute().isnan().all()


@pytest.mark.parametrize("metric", [frame_metrics, cross_entropy, ssim])
def test_other_shapes_and_integers_raise(metric):
    frames = torch.zeros(1, 2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 8, 8\) and \(1, 3, 1, 8, 8\)"):
        metric(frames, torch.zeros(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match=r"expected floats, got torch\.float32 and torch\.uint8"):
        metric(frames, frames.byte())


def test_cross_entropy_is_the_papers_sum_over_a_sequence():
    generator = np.random.default_rng(0)
    p = generator.uniform(0.01, 0.99, (2, 3, 1, 4, 5))
    t = generator.random(p.shape)
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(axis=(1, 2, 3, 4))
    got = cross_entropy(torch.from_numpy(p), torch.from_numpy(t))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_certain_and_wrong_pixel_costs_a_hundred():
    frame = torch.zeros(1, 1, 1, 1, 2)
    frame[..., 0] = 1
    assert cross_entropy(frame, frame).item() == 0
    assert cross_entropy(frame, torch.zeros_like(frame)).item() == 100
