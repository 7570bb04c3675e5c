"""A run that is stopped, by whatever, and goes on: it ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from kill_and_resume import PLACES, attempt, chain, final_state, prepare, same

from convlstm.checkpoint import newest_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    # The children are forked before this process has started a thread.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run ends with when nobody interrupts it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return chain(folder, 0, 0, lambda: ("never", 0), Counter())


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_every_place_in_turn_a_run_ends_with_the_same_bits(tmp_path, whole, workers):
    aims = iter([("epoch end", 0), ("write", 2), ("validation", 3), ("moment", 900)])
    counts = Counter()
    ended = chain(tmp_path / "run", workers, len(PLACES), lambda: next(aims), counts)
    assert counts.keys() >= {"epoch end", "write", "validation"}
    assert same(ended, whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(tmp_path, whole, damage):
    folder = prepare(tmp_path / "run")
    assert not attempt(folder, 0, ("validation", 5))
    last = folder / "run" / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[5000:5100] = bytes(100)
    parts = {"truncated": content[:-3000], "flipped": content, "empty": b""}
    last.write_bytes(parts[damage])
    assert attempt(folder, 0)
    printed = (folder / "output.txt").read_text()
    assert "warning: skipped: run/checkpoints/last.ckpt" in printed
    assert "Resuming from step" in printed
    assert same(final_state(folder), whole)


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (signal.SIGINT, "training_step"),
        (signal.SIGTERM, "training_step"),
        (signal.SIGUSR1, "training_step"),
        (signal.SIGTERM, "validation_step"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_saves_and_stops_and_the_run_goes_on(tmp_path, whole, number, where, workers):
    folder = prepare(tmp_path / "run")
    code = (  # waits for the signal in the middle of a step
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from convlstm.cli import main\n"
        "from convlstm.module import VideoPredictor\n"
        f"step = VideoPredictor.{where}\n"
        "def slow(self, batch, batch_idx):\n"
        "    if self.global_step == 3 and not self.trainer.sanity_checking:\n"
        "        Path('here').touch()\n"
        "        time.sleep(1)\n"
        "    return step(self, batch, batch_idx)\n"
        f"VideoPredictor.{where} = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["fit", "-c", "run.yaml", "--run_dir", "run", "--data.num_workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (folder / "here").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # to the workers, too, as a terminal or a cluster does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    step = 3 if where == "validation_step" else 4
    assert f"Stopped and saved at step {step}" in output
    assert "Traceback" not in output
    path, checkpoint = newest_checkpoint(folder / "run" / "checkpoints")
    assert (path.name, checkpoint["global_step"]) == ("last.ckpt", step)
    assert attempt(folder, workers)
    assert same(final_state(folder), whole)


def test_a_run_from_its_own_configuration_is_the_same_run(tmp_path, whole):
    folder = prepare(tmp_path / "run")
    assert attempt(folder, 0)
    assert attempt(folder, 0, config="run/config.yaml", run="again")
    (folder / "run").rename(folder / "first")
    (folder / "again").rename(folder / "run")
    assert same(final_state(folder), whole)
