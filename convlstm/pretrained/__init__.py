"""Weights that come with the package, each with its model card (NAME.md) and example clips."""

from pathlib import Path
from typing import Any

from torch import Tensor

from convlstm.checkpoint import read_checkpoint
from convlstm.weights import read_weights

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.safetensors")))


def read_pretrained(name_or_path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads trained weights onto the CPU.

    Args:
        name_or_path: Weights that come with the package, a `.safetensors` file that `convlstm
            export` wrote, or a checkpoint that `convlstm fit` wrote.

    Returns:
        State dict and hyperparameters of a `VideoPredictor`.

    Raises:
        FileNotFoundError: There are neither weights nor a file of that name.
        ValueError: The file is damaged, or not one of a predictor.
    """
    path = find_weights(name_or_path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    checkpoint = read_checkpoint(path)
    return checkpoint["state_dict"], dict(checkpoint["hyper_parameters"])


def find_weights(name_or_path: str | Path) -> Path:
    """The file of weights: of that name in the package, or at that path.

    Raises:
        FileNotFoundError: There is neither; of a checkpoint, `read_checkpoint` says it.
    """
    if str(name_or_path) in NAMES:
        return HERE / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if not path.exists() and path.suffix != ".ckpt":
        raise FileNotFoundError(
            f"no weights named {str(name_or_path)!r} and no such file: give one of "
            f"{', '.join(NAMES)}, or a .safetensors or .ckpt file"
        )
    return path


def example_clips(name: str) -> list[Path]:
    """Clips like those that the model was trained on, which it has not seen: GIF files."""
    return sorted((HERE / "clips").glob(f"{name}-*.gif"))
