"""What Lightning's hooks call while a run trains or is tested."""

from convlstm.callbacks.agreement import CommonStart
from convlstm.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from convlstm.callbacks.forecasts import ForecastWriter
from convlstm.callbacks.graph import CUDAGraph
from convlstm.callbacks.guard import GradientGuard, NonFinite
from convlstm.callbacks.interruption import Interruption, TrainingStopped
from convlstm.callbacks.nowcasting import NowcastingReport
from convlstm.callbacks.processor import Processor
from convlstm.callbacks.progress import ProgressBar
from convlstm.callbacks.record import RunRecord
from convlstm.callbacks.report import TestReport
from convlstm.callbacks.seeds import StepSeeds
from convlstm.callbacks.termination import Termination
from convlstm.callbacks.watch import ValidationWatch

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "CUDAGraph",
    "CommonStart",
    "ForecastWriter",
    "GradientGuard",
    "Interruption",
    "LastCheckpoint",
    "NonFinite",
    "NowcastingReport",
    "Processor",
    "ProgressBar",
    "RunRecord",
    "StepSeeds",
    "Termination",
    "TestReport",
    "TrainingStopped",
    "ValidationWatch",
]
