"""Reading checkpoints, with one clear line for each way in which that can go wrong."""

import pickle
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of `VideoPredictor` onto the CPU, without running any code in it.

    Returns:
        Lightning's checkpoint dict, with `state_dict` and `hyper_parameters`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, no checkpoint, or one of another model.
    """
    path = Path(path)
    if not path.exists():
        last = path.with_name("last.ckpt")
        beside = f", but there is {last}" if last.exists() else ""
        raise FileNotFoundError(f"no checkpoint at {path}{beside}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the checkpoint file in it")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or a truncated one")
    if not _is_whole(path):
        raise ValueError(f"{path} is damaged: its checksums do not agree")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {text}") from error
    content = checkpoint if isinstance(checkpoint, dict) else {}
    weights, options = content.get("state_dict"), content.get("hyper_parameters")
    if not isinstance(weights, dict) or "hidden_sizes" not in (
        options if isinstance(options, dict) else ()
    ):
        raise ValueError(f"{path} is not a checkpoint of a VideoPredictor")
    return content


def _is_whole(path: Path) -> bool:
    """Whether the checksums of a zip archive agree, and its directory can be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except PermissionError:
        raise
    except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of most steps among a run's, and its content; None if there is none.

    A damaged one is skipped with a warning. Of two at the same step, `last.ckpt` wins.

    Raises:
        ValueError: There are checkpoints, and all of them are damaged.
    """
    paths = sorted(folder.glob("[!.]*.ckpt"), key=lambda path: (path.stem != "last", path.stem))
    best: tuple[Path, dict[str, Any]] | None = None
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except (ValueError, OSError) as error:
            warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
            continue
        if best is None or _steps(checkpoint) > _steps(best[1]):
            best = path, checkpoint
    if paths and best is None:
        raise ValueError(f"none of the checkpoints in {folder} can be read: train anew elsewhere")
    return best


def _steps(checkpoint: dict[str, Any]) -> int:
    return int(checkpoint.get("global_step", 0))
