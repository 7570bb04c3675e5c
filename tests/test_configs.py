"""Every configuration, in this process; `test_main_job.py` runs the whole ones as a user does."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from convlstm import VideoPredictor
from convlstm.cli import main

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
BASE = ROOT / "configs" / "moving_mnist.yaml"
VARIANTS = sorted((ROOT / "configs" / "variants").glob("*.yaml"))
QUICK = [
    *("--data.digits", "builtin", "--data.batch_size", "2", "--trainer.max_steps", "1"),
    *("--model.hidden_sizes", "[2, 2]", "--trainer.limit_val_batches", "0"),
    *("--trainer.logger", "false", "--trainer.accelerator", "cpu"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_key_has_a_comment(config):
    for line in config.read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*\w+:", line) and not line.strip().startswith(("class_path", "init_args")):
            assert "#" in line, line


def test_the_papers_network_has_the_papers_parameters():
    options = yaml.safe_load((ROOT / "configs" / "paper.yaml").read_text())["model"]
    with torch.device("meta"):
        network = VideoPredictor(**options).network
    assert sum(p.numel() for p in network.parameters()) == 7_585_296  # table 1 of the paper


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_every_variant_trains_a_step_as_its_file_says(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(BASE), "-c", str(variant), *QUICK]) == 0
    asked = yaml.safe_load(variant.read_text())
    run = Path(asked["run_dir"])
    assert run == Path("runs") / variant.stem
    (checkpoint,) = (run / "checkpoints").glob("last.ckpt")
    used = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    said = {**yaml.safe_load(BASE.read_text())["model"], **asked["model"], "hidden_sizes": [2, 2]}
    said["frame_size"] = [64, 64]  # noted when training begins
    assert {key: used[key] for key in said} == said
