"""`benchmarks/results.py`, small."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from convlstm import VideoPredictor
from convlstm.metrics import METRICS
from convlstm.weights import write_weights

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "results.py"


@pytest.fixture
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_table_says_whether_the_model_beats_the_last_frame_at_every_lead_time(script):
    good, bad = (torch.full((4, 10, len(METRICS)), value) for value in (1.0, 2.0))
    mixed = good.clone()
    mixed[:, 7] = 3
    rows = script["table"]({"a": (good, bad), "b": (mixed, bad)}).splitlines()
    assert rows[2] == "| a | 1.00 | 2.00 | 1.0 | 1.0 | 1.0 | 1.0000 | yes |"
    assert rows[3].startswith("| b | 1.20 | 2.00 |")
    assert rows[3].endswith(" no |")


def test_it_writes_the_table_and_the_pictures(script, tmp_path, monkeypatch, capsys):
    model = VideoPredictor(hidden_sizes=[2])
    write_weights(tmp_path / "model.safetensors", model.state_dict(), dict(model.hparams))
    words = ["--model", str(tmp_path / "model.safetensors"), "--digits", "builtin"]
    words += ["--clips", "3", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["results.py", *words])
    script["main"]()
    assert (tmp_path / "out" / "results.md").read_text() in capsys.readouterr().out
    stems = ("best", "middling", "worst", "large", "long")
    pictures = {"lead_time.png", *(f"{name}.{kind}" for name in stems for kind in ("gif", "png"))}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"results.md", *pictures}
    with Image.open(tmp_path / "out" / "long.gif") as animation:
        assert animation.n_frames == 10 + 50
