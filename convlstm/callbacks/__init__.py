"""What Lightning's hooks call while a run trains or is tested."""

from convlstm.callbacks.forecasts import ForecastWriter
from convlstm.callbacks.progress import ProgressBar
from convlstm.callbacks.report import TestReport
from convlstm.callbacks.run import AtomicCheckpointIO, RunRecord, run_checkpoints

__all__ = [
    "AtomicCheckpointIO",
    "ForecastWriter",
    "ProgressBar",
    "RunRecord",
    "TestReport",
    "run_checkpoints",
]
