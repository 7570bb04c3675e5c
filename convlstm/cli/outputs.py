"""The files that are written for each clip, and what they are called."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from convlstm.callbacks.report import write_metrics
from convlstm.cli.comparison import Comparison
from convlstm.files import check_folder, real, replacing
from convlstm.render import save_gif, save_mp4, save_strip

Format = Literal["gif", "png", "npy", "mp4"]

_DRAWN: dict[str, Callable[..., None]] = {"gif": save_gif, "png": save_strip, "mp4": save_mp4}


class Outputs:
    """Names and writes the files.

    Args:
        folder: Where they go.
        formats: Which are written: "gif" and "mp4" (animations), "png" (film strip) and "npy" (the
            forecast frames).
        compare: Whether metrics are written, too, as "json".
    """

    def __init__(self, folder: Path, formats: Sequence[Format], compare: bool) -> None:
        self.folder = folder
        self.formats = list(dict.fromkeys(formats))  # without repetitions
        self.suffixes = [*self.formats, *(["json"] if compare else [])]

    def paths(self, name: Path) -> list[Path]:
        """The files of a name, which may be in a subfolder: NAME.gif and so on."""
        return [self.folder / f"{name}.{suffix}" for suffix in self.suffixes]

    def check(self, clips: Mapping[Path, Path]) -> None:
        """Makes sure that no file is written twice, or over a clip or into one.

        Args:
            clips: What the files of each clip are called.

        Raises:
            OSError: The folder may not be written to.
            ValueError: One would be, or there can be no such folder; the message names it. Or a
                package is missing.
        """
        if "mp4" in self.formats and not importlib.util.find_spec("av"):
            raise ValueError("--format mp4 needs PyAV: pip install av")
        try:
            check_folder(self.folder)
        except NotADirectoryError as error:
            raise ValueError(f"--out must be a folder: {error.filename} is a file") from error
        given = {real(clip): clip for clip in clips}
        owners: dict[str, Path] = {}
        for clip, name in clips.items():
            for path in self.paths(name):
                # Some file systems take capitals for small letters.
                other = owners.setdefault(str(path).casefold(), clip)
                if other is not clip:
                    raise ValueError(
                        f"two clips would both be written as {path}, {other} and {clip}: forecast "
                        "them one after the other with different --out"
                    )
                if real(path) in given:
                    raise ValueError(
                        f"{given[real(path)]} would be overwritten by a forecast: choose "
                        "another --out"
                    )
            folder = (self.folder / name).parent
            if folder.is_dir() and real(folder) in given:
                raise ValueError(
                    f"the forecasts would be written among the frames of {folder}: choose another "
                    "--out"
                )

    def write(
        self, name: Path, context: Tensor, forecast: Tensor, comparison: Comparison | None
    ) -> list[Path]:
        """Writes the files of a clip, each of them whole or not at all.

        Args:
            name: What they are called.
            context: (T, C, H, W).
            forecast: The frames that follow, (steps, C, H, W), float32.
            comparison: With what really followed, if known.

        Returns:
            What was written.

        Raises:
            OSError: A file cannot be written; those before it stay.
            ValueError: A file cannot be written as a package is not installed.
        """
        truth = None if comparison is None else comparison.truth
        paths = self.paths(name)
        for path, suffix in zip(paths, self.suffixes, strict=True):
            if suffix in _DRAWN:
                _DRAWN[suffix](path, context, forecast, truth)
            elif suffix == "npy":
                with replacing(path) as temporary:
                    np.save(temporary, forecast.numpy())
            elif comparison is not None:
                write_metrics(path, comparison.model, comparison.last_frame)
        return paths
