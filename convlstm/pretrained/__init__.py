"""Weights that come with the package, each with its model card (NAME.md) and example clips."""

from pathlib import Path

HERE = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in HERE.glob("*.safetensors")))


def find_weights(name_or_path: str | Path) -> Path:
    """The file of weights: of that name in the package, or at that path.

    Raises:
        FileNotFoundError: There is neither.
    """
    if str(name_or_path) in NAMES:
        return HERE / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights named {str(name_or_path)!r} and no such file: give one of "
            f"{', '.join(NAMES)}, or a .safetensors or .ckpt file"
        )
    return path


def example_clips(name: str) -> list[Path]:
    """Clips like those that the model was trained on, which it has not seen: GIF files."""
    return sorted((HERE / "clips").glob(f"{name}-*.gif"))
