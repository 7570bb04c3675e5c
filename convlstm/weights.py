"""Weights without a training around them: one safetensors file that holds the model's options too.

The format runs no code when it is read, and any framework can read it:
https://github.com/huggingface/safetensors.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from convlstm.files import replacing

OPTIONS = "hyper_parameters"  # key of the file's metadata: the options as JSON


def write_weights(
    path: str | Path,
    weights: dict[str, Tensor],
    options: dict[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes weights and options, whole or not at all.

    Args:
        path: The file, NAME.safetensors.
        weights: State dict of a `VideoPredictor`.
        options: Its hyperparameters: numbers, strings, lists of them, or None.
        dtype: What the weights are stored as; `torch.float16` halves the file.

    Raises:
        OSError: The file cannot be written.
        ValueError: Weights are NaN or infinite, or become so in this dtype.
    """
    tensors = {
        name: weight.detach().cpu().to(dtype).contiguous() for name, weight in weights.items()
    }
    if bad := _not_finite(tensors):
        raise ValueError(
            f"{path} is not written, as nobody could load it: {bad} is NaN or infinite in "
            f"{str(dtype).removeprefix('torch.')}: export another checkpoint, or in another dtype"
        )
    with replacing(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors, metadata={OPTIONS: json.dumps(options)}))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_weights` wrote, onto the CPU; weights as float32.

    Returns:
        State dict and hyperparameters.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no safetensors file, or one without options; or weights are
            NaN or infinite.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        options = json.loads(metadata.get(OPTIONS, "null"))
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ValueError(f"{path} holds no options of a model: write it with `convlstm export`")
    if _not_finite(weights):
        raise ValueError(f"{path} is damaged: it has weights that are NaN or infinite")
    return weights, options


def _not_finite(weights: dict[str, Tensor]) -> str | None:
    """The name of weights that are NaN or infinite, if there are any."""
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)
