"""Reading checkpoints, with one clear line for each way in which that can go wrong."""

import pickle
import zipfile
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
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the checkpoint file in it")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no checkpoint, or a truncated one")
    with zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:
            raise ValueError(f"{path} is damaged: its checksums do not agree")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}"
        ) from error
    keys = checkpoint.keys() if isinstance(checkpoint, dict) else ()
    if "state_dict" not in keys or "hidden_sizes" not in (checkpoint.get("hyper_parameters") or ()):
        raise ValueError(f"{path} is not a checkpoint of a VideoPredictor")
    return dict(checkpoint)
