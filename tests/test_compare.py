"""The comparison of the recurrent family in `benchmarks/`."""

import json

import compare
import compare_report
import contestants
import pytest
import torch

from convlstm import ConvLSTM, VideoPredictor
from convlstm.cli import main as convlstm

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")


def arguments(out, *words):
    tiny = ["--digits", "builtin", "--sequences", "4", "--batch_size", "2", "--test_size", "3"]
    return ["train", "--out", str(out), "--hidden", "4", "--accelerator", "cpu", *tiny, *words]


@pytest.mark.parametrize("name", contestants.NAMES)
def test_every_contestant_comes_close_to_the_lstm(name):
    sizes = contestants.hidden_sizes(name, 16)
    lstm = (16, 16)
    if name == "fc_lstm":
        ratio = contestants.macs(name, sizes) / contestants.macs("lstm", lstm)
    else:
        ratio = contestants.parameters(name, sizes) / contestants.parameters("lstm", lstm)
    assert abs(ratio - 1) <= 0.05


def test_parameters_and_multiplications_are_those_of_the_network():
    """Of the LSTM with 2 channels, counted by hand: 256 map points, kernels of 9, 4 gates."""
    layer = ConvLSTM(16, 2)
    first = sum(p.numel() for p in layer.parameters())
    assert first == 4 * 2 * (16 + 2) * 9 + 8
    second, top = 4 * 2 * (2 + 2) * 9 + 8, 4 * 2 * 2 * 9 + 8
    head = (2 + 2) * 16 + 16
    assert contestants.parameters("lstm", (2, 2)) == first + second + top + second + head
    inputs = 10 * 4 * 2 * 9 * (16 + 2 + 2)  # encoder's two, and the forecaster's lower
    hidden = (9 + 9 + 10 + 10) * 4 * 2 * 9 * 2  # the encoder's first steps have no state
    assert contestants.macs("lstm", (2, 2)) == 256 * (inputs + hidden + 10 * (2 + 2) * 16)


def test_sizes_that_cannot_match_are_refused():
    with pytest.raises(ValueError, match="no sizes of peephole_full come within 5%"):
        contestants.hidden_sizes("peephole_full", 1)


def test_the_plan_has_each_run_once_and_the_most_telling_first():
    runs = compare.plan([3, 0, 6], seeds=3)
    assert len({run.name for run in runs}) == len(runs) == 3 * 8 + 3 * 3 * 2
    others = [name for name in contestants.NAMES if name != "fc_lstm"]
    assert runs[:7] == [(name, 0, 0) for name in others]
    assert runs[7:14] == [(name, 6, 0) for name in others]
    assert runs[14:16] == [("fc_lstm", 0, 0), ("fc_lstm", 6, 0)]
    assert {r.gap for r in runs[:28]} == {0, 6}
    assert {r.seed for r in runs[16:28]} == {1, 2}
    assert len(compare.plan([0], seeds=1)) == 8


def test_a_gap_ends_with_the_context():
    assert compare.occlude(0) is None
    assert compare.occlude(3) == [7, 3]


def test_one_run_is_trained_resumed_evaluated_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "plan", lambda gaps, seeds: [compare.Run("gru", 6, 1)])
    args = compare.parse(arguments(tmp_path))
    folder = tmp_path / "gru-gap6-seed1"
    # A training that was cut off half way.
    words = [*compare.recipe(compare.Run("gru", 6, 1), args), "--run_dir", str(folder)]

    def cut_off(self, batch, batch_idx):
        if self.global_step == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    step = VideoPredictor.training_step
    monkeypatch.setattr(VideoPredictor, "training_step", cut_off)
    assert convlstm(["fit", *words]) == 130
    assert not (folder / "result.json").exists()
    monkeypatch.setattr(VideoPredictor, "training_step", step)
    compare.main(arguments(tmp_path))
    printed = capsys.readouterr().out
    assert "Run 1 of 1: gru-gap6-seed1" in printed
    assert "Resuming from step 1" in printed

    result = json.loads((folder / "result.json").read_text())
    assert (result["variant"], result["gap"], result["seed"]) == ("gru", 6, 1)
    assert result["sequences"] == 4
    assert tuple(result["hidden_sizes"]) == contestants.hidden_sizes("gru", 4)
    assert len(result["mse_by_lead_time"]) == len(result["gradient"]) == 10
    assert result["mse"] == pytest.approx(sum(result["mse_by_lead_time"]) / 10)
    used = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert (used["cell"], used["learning_rate"]) == ("gru", args.learning_rate)
    for name in ("table.md", "results.json", "lead_time.png", "gap.png", "gradient.png"):
        assert (tmp_path / name).exists()

    # What is finished is not done again; runs of other settings are kept apart.
    before = (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    compare.main(arguments(tmp_path))
    assert "Run 1" not in capsys.readouterr().out
    assert (folder / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match=r"have --sequences 4, not 8: .* another --out"):
        compare.main(arguments(tmp_path, "--sequences", "8"))


def test_speed_measures_every_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "NAMES", ("rnn",))
    monkeypatch.setattr(compare, "peak_memory", lambda name, args: 1.0)  # needs a fresh process
    compare.main(["speed", *arguments(tmp_path)[1:], "--repeats", "1"])
    values = json.loads((tmp_path / "speed.json").read_text())["rnn"]
    assert values["sequences_per_second"] > 0
    assert values["parameters"] == contestants.parameters("rnn", tuple(values["hidden_sizes"]))


def test_errors_and_gradients_are_those_of_a_forecast_known_in_closed_form():
    """Each frame is forecast as 2·(first frame) + 3·(last one that is not blank)."""
    context, target = torch.randint(0, 256, (2, 4, 5, 1, 6, 7), dtype=torch.uint8)
    context[:, 3:] = 0  # a gap of two
    batches = [{"context": context[n : n + 2], "target": target[n : n + 2]} for n in (0, 2)]

    def model(frames, steps):
        return (2 * frames[:, :1] + 3 * frames[:, 2:3]).expand(-1, steps, -1, -1, -1)

    got = compare.measure(model, batches, gap=2)
    x, y = context.double() / 255, target.double() / 255
    error = 2 * x[:, :1] + 3 * x[:, 2:3] - y
    by_lead_time = error.square().sum((2, 3, 4)).mean(0)
    assert got["mse_by_lead_time"] == pytest.approx(by_lead_time.tolist(), rel=1e-5)
    assert got["mse"] == pytest.approx(by_lead_time.mean().item(), rel=1e-5)
    norm = (2 * error.sum(1)).flatten(1).norm(dim=1).mean().item()
    assert got["gradient"] == pytest.approx([2 * norm, 0, 3 * norm, 0, 0], rel=1e-5)
    still = (x[:, 2:3] - y).square().sum((2, 3, 4)).mean().item()
    assert got["last_frame_mse"] == pytest.approx(still, rel=1e-5)


def result(variant, seed, gap=0, mse=10.0):
    return {
        "variant": variant,
        "gap": gap,
        "seed": seed,
        "hidden_sizes": [4, 4],
        "mse": mse,
        "mse_by_lead_time": [mse - 1, mse + 1],
        "gradient": [0.1, 1.0],
        "last_frame_mse": 20.0,
    }


def test_the_table_has_the_mean_and_the_range_over_seeds():
    runs = [result("lstm", 0, mse=10.0), result("lstm", 1, mse=12.0), result("rnn", 0, gap=6)]
    text = compare_report.table(runs, {})
    assert "MSE, gap 0 | MSE, gap 6" in text
    (lstm,) = [line for line in text.splitlines() if line.startswith("| lstm ")]
    assert "| 11.00 (10.00 to 12.00) | – | 10.00 (9.00 to 11.00) |" in lstm
    assert lstm.endswith("| 0.1 (0.1 to 0.1) |")
    (rnn,) = [line for line in text.splitlines() if line.startswith("| rnn ")]
    assert "| – | 10.00 | – | – | – |" in rnn
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_a_curve_over_gaps_takes_only_seeds_that_have_all_of_them():
    runs = [result("lstm", 0), result("lstm", 0, gap=6, mse=30.0), result("lstm", 1)]
    assert compare_report.by_gap(runs) == {"lstm": ([0.0, 6.0], [[10.0, 30.0]])}
    assert compare_report.by_context_frame(runs[:1]) == {"lstm": ([1.0, 2.0], [[0.1, 1.0]])}


def test_nothing_to_report_on_is_said(tmp_path):
    with pytest.raises(SystemExit, match="no finished run"):
        compare.main(["report", "--out", str(tmp_path)])
