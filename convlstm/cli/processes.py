"""The other processes of a run, when one of them fails."""

import signal
import subprocess
from contextlib import suppress

import torch.distributed as dist
from pytorch_lightning import Trainer

GRACE = 3  # seconds in which a process may end by itself


def end_others(trainer: Trainer) -> None:
    """Ends the processes that this one has started, which might not notice that it is gone."""
    processes: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    ours = [process for process in processes if isinstance(process, subprocess.Popen)]
    processes.clear()  # Lightning's watch over them would end this process, too
    for process in ours:
        process.send_signal(signal.SIGTERM)
    for process in ours:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()


def is_lost_connection(error: Exception) -> bool:
    """Whether an error only says that another process does not answer any more."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
