"""Oracles: torchmetrics' classification of events, and the definition of the FSS by SciPy."""

import json
from types import SimpleNamespace

import pytest
import torch
from scipy.ndimage import uniform_filter
from torchmetrics.functional.classification import (
    binary_cohen_kappa,
    binary_jaccard_index,
    binary_precision,
    binary_recall,
)

from convlstm.callbacks import NowcastingReport
from convlstm.callbacks.nowcasting import scores_table
from convlstm.nowcasting import NowcastingScores

THRESHOLDS = [0.3, 0.6]


@pytest.fixture
def pair():
    """Forecasts that have something to do with the truth, and the truth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(6, 4, 2, 9, 11, generator=generator)
    noise = torch.randn(truth.shape, generator=generator)
    return truth + 0.4 * noise, truth


def scores(pair, windows=(), size=6):
    metric = NowcastingScores(THRESHOLDS, windows)
    for forecast, truth in zip(*(frames.split(size) for frames in pair), strict=True):
        metric.update(forecast, truth)
    return metric.compute()


def frames_of(pair, lead):
    """All frames, or those of one lead time."""
    return [frames if lead == 0 else frames[:, lead - 1] for frames in pair]


@pytest.mark.parametrize("size", [6, 4])
def test_scores_of_events_are_torchmetrics_own(pair, size):
    result = scores(pair, size=size)
    assert set(result) == {"csi", "pod", "far", "hss"}
    for lead in range(5):
        for k, threshold in enumerate(THRESHOLDS):
            events = [(frames >= threshold).int() for frames in frames_of(pair, lead)]
            expected = {
                "csi": binary_jaccard_index(*events),
                "pod": binary_recall(*events),
                "far": 1 - binary_precision(*events),
                "hss": binary_cohen_kappa(*events),
            }
            for name, value in expected.items():
                assert result[name][lead, k].item() == pytest.approx(value.item(), abs=1e-6), name


@pytest.mark.parametrize("size", [6, 4])
@pytest.mark.parametrize("window", [1, 5, 21])
def test_the_fractions_skill_score_is_its_definition_in_scipy(pair, window, size):
    result = scores(pair, [window], size)[f"fss_{window}"]
    for lead in range(5):
        for k, threshold in enumerate(THRESHOLDS):
            axes = (1,) * (5 - (lead > 0) - 2)
            ours, theirs = (
                uniform_filter(
                    (frames >= threshold).numpy().astype(float),
                    (*axes, window, window),
                    mode="constant",
                )
                for frames in frames_of(pair, lead)
            )
            apart, together = ((ours - theirs) ** 2).sum(), (ours**2 + theirs**2).sum()
            assert result[lead, k].item() == pytest.approx(1 - apart / together, abs=1e-5)


def test_a_perfect_forecast_has_perfect_scores_and_one_beside_it_only_a_better_fss():
    truth = torch.zeros(1, 1, 1, 32, 32)
    truth[..., 10:14, 10:14] = 1
    perfect = NowcastingScores([0.5], [1, 9])
    perfect.update(truth, truth)
    values = {name: value[0, 0].item() for name, value in perfect.compute().items()}
    assert values == {"csi": 1, "pod": 1, "far": 0, "hss": 1, "fss_1": 1, "fss_9": 1}
    beside = NowcastingScores([0.5], [1, 9])
    beside.update(truth.roll(4, dims=-1), truth)
    values = {name: value[0, 0].item() for name, value in beside.compute().items()}
    assert values["csi"] == values["pod"] == values["fss_1"] == 0
    assert values["far"] == 1
    assert values["hss"] < 0
    assert values["fss_9"] > 0.5


def test_where_nothing_happens_there_is_no_score():
    nothing = torch.zeros(1, 2, 1, 4, 4)
    metric = NowcastingScores([0.5], [3])
    metric.update(nothing, nothing)
    assert all(value.isnan().all() for value in metric.compute().values())


@pytest.mark.parametrize(
    ("thresholds", "windows", "message"),
    [
        ([], [], "thresholds must be above 0 and at most 1, at least one, got"),
        ([0.0], [], r"thresholds must be .* got \[0.0\]"),
        ([0.5, float("nan")], [], r"thresholds must be .* got \[0.5, nan\]"),
        ([35], [], r"thresholds must be .* at most 1, at least one, got \[35\]"),
        ([0.5], [4], r"windows must be odd numbers from 1, got \[4\]"),
        ([0.5], [-1], r"windows must be odd numbers from 1, got \[-1\]"),
        ([0.5], [3.0], r"windows must be odd numbers from 1, got \[3.0\]"),
    ],
)
def test_what_is_out_of_range_is_named(thresholds, windows, message):
    with pytest.raises(ValueError, match=message):
        NowcastingScores(thresholds, windows)


def test_integer_pixels_raise():
    frames = torch.zeros(1, 2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"expected floats, got torch\.float32 and torch\.uint8"):
        NowcastingScores([0.5]).update(frames, frames.byte())


def test_other_shapes_raise():
    with pytest.raises(ValueError, match=r"must both be \(B, T, C, H, W\), got"):
        NowcastingScores([0.5]).update(torch.zeros(1, 2, 1, 4, 4), torch.zeros(1, 2, 1, 4, 5))


def test_a_pixel_at_the_threshold_is_an_event():
    frames = torch.full((1, 1, 1, 2, 2), 0.5)
    metric = NowcastingScores([0.5])
    metric.update(frames, frames)
    assert metric.compute()["csi"][0, 0] == 1


def test_events_of_the_last_frame_are_scored_anew_in_each_test(tmp_path):
    report = NowcastingReport(tmp_path, [0.5], [])
    context = torch.zeros(1, 3, 1, 4, 4, dtype=torch.uint8)
    context[:, -1] = 255
    none, rain = torch.zeros(1, 2, 1, 4, 4), torch.ones(1, 2, 1, 4, 4)
    for target in (none, rain):
        report.on_test_start(None, None)
        report.on_test_batch_end(None, None, target, {"context": context, "target": target}, 0)
        scores = report.baseline.compute()
    assert scores["pod"][0, 0] == 1
    assert scores["far"][0, 0] == 0
    assert report.model.compute()["csi"][0, 0] == 1


def test_the_table_has_whose_scores_they_are_and_three_lead_times():
    model, baseline = ({"csi": torch.arange(5.0)[:, None] + k} for k in (0, 10))  # four lead times
    columns = {c.header: list(c.cells) for c in scores_table([0.5], model, baseline).columns}
    assert list(columns) == ["threshold", "score", "forecast by", "all", "+1", "+2", "+4"]
    assert columns["forecast by"] == ["the model", "the last frame"]
    assert columns["all"] == ["0.0000", "10.0000"]
    assert columns["+4"] == ["4.0000", "14.0000"]
    odd = {"csi": torch.zeros(4, 1)}
    assert [c.header for c in scores_table([0.5], odd, odd).columns][3:] == [
        "all",
        "+1",
        "+2",
        "+3",
    ]


def test_the_file_has_the_scores_of_all_lead_times_and_of_each(tmp_path):
    frames = torch.zeros(1, 3, 1, 2, 2)
    target, forecast = frames.clone(), frames.clone()
    target[0, :2] = 1  # nothing at the last lead time
    forecast[0, 0] = 1  # of the first two a hit and a miss
    report = NowcastingReport(tmp_path, [0.5], [])
    report.on_test_start(None, None)
    report.on_test_batch_end(None, None, forecast, {"context": frames, "target": target}, 0)
    report.on_test_end(SimpleNamespace(is_global_zero=True), None)
    written = json.loads((tmp_path / "nowcasting.json").read_text())["model"]
    assert written["pod"] == [0.5]
    assert written["pod_by_lead_time"] == [[1.0, 0.0, None]]


def test_a_second_test_begins_anew(tmp_path):
    report = NowcastingReport(tmp_path, [0.5], [])
    context, rain = torch.zeros(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4)
    for forecast in (torch.zeros_like(rain), rain):  # all missed, then none
        report.on_test_start(None, None)
        report.on_test_batch_end(None, None, forecast, {"context": context, "target": rain}, 0)
    assert report.model.compute()["pod"][0, 0] == 1


def test_a_threshold_may_be_one():
    frames = torch.ones(1, 1, 1, 2, 2)
    metric = NowcastingScores([1.0])
    metric.update(frames, frames)
    assert metric.compute()["csi"][0, 0] == 1
