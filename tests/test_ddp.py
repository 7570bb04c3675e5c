"""Two processes (gloo, on the CPU) against one, as a user starts them."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CONFIG = {
    "model": {"patch_size": 4, "hidden_sizes": [4], "learning_rate": 0.01},
    "data": {
        "class_path": "MovingMNISTDataModule",
        "init_args": {
            "digits": "builtin",
            "frame_size": 32,
            "context_length": 2,
            "target_length": 2,
            "train_size": 26,  # six steps of four an epoch; two samples are left out
            "val_size": 7,  # shares of four and three: two batches and two
            "test_size": 9,  # shares of five and four: three batches and two
            "batch_size": 2,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "strategy": "ddp",
        "devices": 2,
        "max_steps": 10,
        "val_check_interval": 5,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    },
}
ONE = ["--trainer.devices", "1", "--data.batch_size", "4"]
# The command, with a diary of the samples and a way to die; Lightning starts it once a process.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from convlstm.cli import main
from convlstm.module import VideoPredictor

rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
if os.environ.get("APART"):
    os.makedirs(f"node{rank}", exist_ok=True)
    os.chdir(f"node{rank}")
step = VideoPredictor.training_step
test = VideoPredictor.test_step

def training_step(self, batch, batch_idx):
    with open(f"seen{rank}.txt", "a") as file:
        print(self.global_step, *batch["index"].tolist(), file=file)
    die = os.environ.get("DIE", "").split()  # rank, step, how
    if die and [rank, self.global_step] == [int(die[0]), int(die[1])] and not Path("died").exists():
        Path("died").touch()
        if die[2] == "raise":
            raise RuntimeError("something broke here")
        if die[2] == "refuse":
            raise ValueError("a clip is damaged")
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("SLOW"):
        time.sleep(0.2)
    return step(self, batch, batch_idx)

def test_step(self, batch, batch_idx):
    Path(f"tested{rank}").touch()
    if os.environ.get("FULL") == str(rank):
        raise OSError("no space left")
    if os.environ.get("SLOW"):
        time.sleep(20)
    return test(self, batch, batch_idx)

VideoPredictor.training_step = training_step
VideoPredictor.test_step = test_step
if __name__ == "__main__":
    sys.exit(main())
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path):
    """Starts the command in a folder of its own; its processes are gone when the test is over."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def start(*words, launcher=(), **environment):
        process = subprocess.Popen(
            [sys.executable, *launcher, "script.py", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process_group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def process_group_lives(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_end(process):
    begin = time.monotonic()
    while process_group_lives(process):
        assert time.monotonic() - begin < 60
        time.sleep(0.2)


def finish(process, status=0):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def logged(run, name):
    events = EventAccumulator(str(run / "logs"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def weights(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same_bits(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def seen(folder, rank):
    lines = (folder / f"seen{rank}.txt").read_text().splitlines()
    return [list(map(int, line.split())) for line in lines]


def test_two_processes_train_and_test_as_one_with_the_same_global_batch(start, tmp_path):
    finish(start("fit", "-c", "small.yaml", "--run_dir", "two"))
    together = [row[1:] for rank in (0, 1) for row in seen(tmp_path, rank)]
    numbers = sorted(number for row in together for number in row)
    assert numbers == [e * 26 + p for e in (0, 1) for p in range(24 if e == 0 else 16)]

    finish(start("fit", "-c", "small.yaml", "--run_dir", "one", *ONE))
    for name, count in (("train/loss", 10), ("train/grad_norm", 10), ("val/mse", 2)):
        two, one = (logged(tmp_path / run, name) for run in ("two", "one"))
        assert len(two) == count
        assert two == pytest.approx(one, rel=1e-5), name  # gradients are added in another order

    metrics, scores = [], []
    for words in ([], ONE):  # the same weights
        test = ["test", "-c", "small.yaml", "--ckpt_path", "two/checkpoints/last.ckpt"]
        test += ["--thresholds", "[0.3]"]
        finish(start(*test, "--run_dir", f"test{len(words)}", *words))
        text = (tmp_path / f"test{len(words)}" / "test" / "nowcasting.json").read_text()
        scores.append(yaml.safe_load(text))
        text = (tmp_path / f"test{len(words)}" / "test" / "metrics.json").read_text()
        metrics.append(yaml.safe_load(text))
    assert metrics[0].keys() == metrics[1].keys() == {"model", "last_frame"}
    for of in metrics[0]:
        for name, value in metrics[0][of].items():
            assert value == pytest.approx(metrics[1][of][name], rel=1e-6), name
        for name, (total,) in ((n, v) for n, v in scores[0][of].items() if "_by_" not in n):
            assert total == pytest.approx(scores[1][of][name][0], rel=1e-6), name


def test_a_training_in_spawned_processes_names_its_best_checkpoint(start, tmp_path):
    printed = finish(start("fit", "-c", "small.yaml", "--trainer.strategy", "ddp_spawn"))
    best = tmp_path / "runs" / "small" / "checkpoints" / "best.ckpt"
    assert best.exists()
    assert f"Best checkpoint: {best.relative_to(tmp_path)}\n" in printed


@pytest.mark.parametrize("die", ["1 3 raise", "1 3 kill", "0 3 kill"])
def test_a_process_that_dies_takes_the_others_down(start, die):
    process = start("fit", "-c", "small.yaml", DIE=die)
    output, _ = process.communicate(timeout=90)
    await_end(process)
    assert process.returncode != 0
    if "raise" in die:
        assert "something broke here" in output


@pytest.mark.parametrize(("rank", "strategy"), [(0, "ddp"), (1, "ddp"), (0, "ddp_spawn")])
def test_what_one_process_refuses_is_said_in_a_line_and_no_traceback(start, rank, strategy):
    words = ["fit", "-c", "small.yaml", "--trainer.strategy", strategy]
    process = start(*words, DIE=f"{rank} 3 refuse")
    output, _ = process.communicate(timeout=90)
    await_end(process)
    assert process.returncode == 1 or (rank and process.returncode == -signal.SIGKILL)
    assert "a clip is damaged\n" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_test_whose_process_fails_or_gets_sigterm_ends_on_all(start, tmp_path, rank):
    finish(start("fit", "-c", "small.yaml", "--trainer.max_steps", "5"))
    words = ["test", "-c", "small.yaml"]
    process = start(*words, FULL=str(rank), SLOW="1")
    output, _ = process.communicate(timeout=90)
    await_end(process)
    assert process.returncode != 0
    assert "no space left\n" in output
    assert "Traceback" not in output
    for name in ("tested0", "tested1"):
        (tmp_path / name).unlink(missing_ok=True)
    process = start(*words, SLOW="1")
    while not all((tmp_path / name).exists() for name in ("tested0", "tested1")):
        time.sleep(0.05)
    os.kill([process.pid, *children(process.pid)][rank], signal.SIGTERM)
    output, _ = process.communicate(timeout=15)  # a step takes longer
    await_end(process)
    assert process.returncode == (-signal.SIGKILL if rank else 128 + signal.SIGTERM)
    assert "convlstm test: terminated" in output
    assert "Traceback" not in output


def test_processes_that_see_different_checkpoints_are_refused(start, tmp_path):
    """As on two nodes, each with a disk of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["fit", "-c", "../small.yaml", "--run_dir", "run", "--resume"]
    killed = start(*words, launcher=launcher, APART="1", DIE="0 7 kill")
    killed.communicate(timeout=90)
    (tmp_path / "died").touch()
    output = finish(start(*words, launcher=launcher, APART="1"), 1)
    assert "some processes would begin at step 0, others at step 6: run_dir must be one" in output


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_process_saves_and_the_run_goes_on_to_the_same_end(start, tmp_path, rank):
    finish(start("fit", "-c", "small.yaml", "--run_dir", "whole"))
    (tmp_path / "seen0.txt").unlink()
    process = start("fit", "-c", "small.yaml", "--run_dir", "cut", SLOW="1")
    while not (tmp_path / "seen0.txt").exists() or len(seen(tmp_path, 0)) < 3:
        time.sleep(0.05)
    pids = [process.pid, *children(process.pid)]
    os.kill(pids[rank], signal.SIGTERM)
    output = finish(process, 128 + signal.SIGTERM)
    assert "Stopped and saved at step" in output
    await_end(process)
    assert "Resuming from step" in finish(
        start("fit", "-c", "small.yaml", "--run_dir", "cut", "--resume")
    )
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def children(pid):
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return list(map(int, listed.stdout.split()))[:1]


def test_torchrun_restarts_a_run_that_lost_a_process_and_it_goes_on_by_itself(start, tmp_path):
    finish(start("fit", "-c", "small.yaml", "--run_dir", "whole"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher += ["--max-restarts", "2"]
    words = ["fit", "-c", "small.yaml", "--run_dir", "cut", "--resume"]
    # Otherwise the restarted processes may look for each other where the dead ones were.
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    output = finish(start(*words, launcher=launcher, DIE="1 7 kill", **fresh))
    assert "Resuming from step" in output
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
