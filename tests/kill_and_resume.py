"""Kills trainings with SIGKILL, resumes them, and compares the weights they end with.

    python tests/kill_and_resume.py --kills 60

Every chain of kills trains one run to its end; its weights, averaged weights and optimizer must be
equal to those of the run that was never killed, bit for bit. Kills fall at random moments, and
aimed: in the middle of a checkpoint's bytes, in a validation, at an epoch's end. A child is forked
from a process that has imported everything, so that a kill costs a second.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from convlstm.callbacks import AtomicCheckpointIO, Interruption
from convlstm.cli import train
from convlstm.files import replacing

CONFIG = {
    "model": {
        "patch_size": 4,
        "hidden_sizes": [4, 4],
        "optimizer": "muon",
        "learning_rate": 0.01,
        "forecaster": "autoregressive",
        "scheduled_sampling_steps": 20,
    },
    "data": {
        "class_path": "MovingMNISTDataModule",
        "init_args": {
            "digits": "builtin",
            "frame_size": 32,
            "context_length": 2,
            "target_length": 3,
            "train_size": 45,
            "val_size": 10,
            "batch_size": 4,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 24,
        "val_check_interval": 6,
        "check_val_every_n_epoch": None,
        "accumulate_grad_batches": 2,
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}}],
    },
}
Aim = tuple[str, int]  # where, and the how manieth time; "moment" and milliseconds
PLACES = ("moment", "write", "validation", "epoch end")


def child(folder: Path, words: list[str], aim: Aim) -> None:
    """Trains; kills itself where it is told to."""
    os.chdir(folder)
    sys.stdout = sys.stderr = Path("output.txt").open("a", buffering=1)  # noqa: SIM115
    torch.set_num_threads(1)
    warnings.resetwarnings()  # under pytest they are errors
    place, left = aim

    def die_at(owner: type, name: str) -> None:
        original = getattr(owner, name, None)

        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, *args, **kwargs) if original else None

        setattr(owner, name, hook)

    def write_half(self: Any, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            save(self, checkpoint, path)
            return
        torch.save(checkpoint, "whole")
        content = Path("whole").read_bytes()
        with replacing(path) as temporary:
            temporary.write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    save = AtomicCheckpointIO.save_checkpoint
    if place == "write":
        AtomicCheckpointIO.save_checkpoint = write_half  # type: ignore[method-assign]
    elif place == "validation":
        die_at(Interruption, "on_validation_batch_start")
    elif place == "epoch end":
        die_at(Interruption, "on_train_epoch_end")
    elif place == "moment":
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, left / 1000)
    sys.exit(train.run("fit", words))


def attempt(
    folder: Path, workers: int, aim: Aim = ("never", 0), config: str = "run.yaml", run: str = "run"
) -> bool:
    """Trains or resumes; returns whether the run came to its end rather than being killed."""
    words = ["-c", config, "--run_dir", run, "--resume", "--data.num_workers", str(workers)]
    context = multiprocessing.get_context("fork")
    process = context.Process(target=child, args=(folder, words, aim))
    process.start()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError((folder / "output.txt").read_text())
    return process.exitcode == 0


def final_state(folder: Path) -> dict[str, Any]:
    """All that a run ends with and that the way there could change."""
    last, best = (
        torch.load(folder / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("last", "best")
    )
    keys = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    return {
        **{key: last[key] for key in (*keys, "lr_schedulers", "global_step")},
        "best": (best["global_step"], best["state_dict"]),
    }


def same(x: Any, y: Any) -> bool:
    """Bitwise equality of nested containers of tensors."""
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[key], y[key]) for key in x)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(map(same, x, y))
    return bool(x == y)


def prepare(folder: Path) -> Path:
    """A folder with the configuration."""
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def chain(
    folder: Path, workers: int, kills: int, draw: Callable[[], Aim], counts: Counter[str]
) -> dict[str, Any]:
    """One run, killed so often on its way; returns what it ends with."""
    prepare(folder)
    for _ in range(kills):
        aim = draw()
        if attempt(folder, workers, aim):
            break  # it was through before its time came
        counts[aim[0]] += 1
    while not attempt(folder, workers):
        raise RuntimeError("killed by somebody else")
    return final_state(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        start = time.perf_counter()
        whole = chain(home / "whole", 0, 0, lambda: ("never", 0), Counter())
        duration = int(1000 * (time.perf_counter() - start))
        print(f"uninterrupted: {whole['global_step']} steps in {duration} ms")
        counts: Counter[str] = Counter()
        number = 0
        while sum(counts.values()) < args.kills or min(counts[p] for p in PLACES) < 5:
            workers = 2 * (number % 2)
            turn = iter(rng.sample(PLACES, len(PLACES)))

            def draw() -> Aim:
                place = next(turn)  # noqa: B023 (used within this turn only)
                return place, rng.randrange(duration) if place == "moment" else rng.randrange(3)

            folder = home / f"chain{number}"
            ended = chain(folder, workers, len(PLACES), draw, counts)
            verdict = "equal" if same(ended, whole) else "DIFFERENT"
            print(f"chain {number}, {workers} workers: {verdict} after {dict(counts)}", flush=True)
            if verdict != "equal":
                sys.exit(1)
            number += 1
    print(f"{sum(counts.values())} kills {dict(counts)}: every run ended with the same bits")


if __name__ == "__main__":
    main()
