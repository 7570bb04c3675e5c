"""Training on your own clips."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_warn

from datamodules.augmentation import AUGMENTATIONS, Augmentation
from datamodules.base import VideoDataModule, require_at_least
from datamodules.clip_frames import Part
from datamodules.clip_splits import split_frames, split_names
from datamodules.clip_windows import ClipWindows, span
from datamodules.clips import ClipReader, find_clips, open_clip
from datamodules.clips.fitting import FITS, Fit
from datamodules.clips.folders import children
from datamodules.clips.opening import FILE_SUFFIXES
from datamodules.clips.stills import STILL_SUFFIXES
from datamodules.frame_cache import FrameCache
from datamodules.random_streams import SPLITS, stream_key

Split = Literal["train", "val", "test"]


class ClipDataModule(VideoDataModule):
    """Windows of the clips in a folder: videos, animations, folders of images, arrays.

    If the folder has subfolders train, val and test (in any letter case), these are the splits.
    Otherwise the seed assigns each clip at random to one split, so that no clip has frames in two
    splits; or, for very few clips, each clip is split in time.

    An epoch of training has all windows of the training clips once, in a new order each time. By
    default, windows for validation and test do not overlap. Frames have the clips' type, uint8,
    uint16 or float32 in [0, 1]; float32 if the types in a split differ.

    Args:
        root: The folder, searched recursively; see `find_clips` and `open_clip` for the formats.
        frame_size: Height and width in pixels to which frames are resized: one number, or a list
            of two.
        fit: "cover" crops the centre to the aspect ratio of frame_size and resizes it, "stretch"
            resizes the whole frame, "crop" crops the centre without resizing.
        channels: 1 for gray, 3 for RGB; other clips are converted. Must equal the model's channels.
        split: Fractions of the clips, or of each clip's frames, for train, val and test.
        split_by: "clip", or "time": the beginning of each clip for training, the next part for
            validation, the end for the test. "time" is for fewer than three clips, as it makes the
            splits look alike.
        context_length: Number of context frames, which the model sees.
        target_length: Number of target frames, which it forecasts.
        frame_step: 2 uses every second frame, for slow motion.
        stride: Frames from the start of one training window to the next.
        eval_stride: The same for validation and test; None for windows that do not overlap.
        batch_size: Windows per batch and device.
        num_workers: Processes that decode clips, per device; 0 decodes in the training process.
        cache_mib: Memory in MiB for cached decoded frames, in each of these processes.
        seed: Seed of the split and of the order of windows.
        axes: Axes of .npy and .npz files in another layout, such as "HWT"; None for the standard
            layouts.
        array: Name of the array in .npz files with several arrays.
        augment: Random augmentation of training windows, new in each epoch, for few clips. "hflip"
            and "vflip" flip a window horizontally and vertically and "reverse" reverses it in time,
            each with probability 1/2; "rotate90" rotates it by a random multiple of 90 degrees and
            requires square frames.

    Raises:
        ValueError: If an option is out of its range.
    """

    frame_size: tuple[int, int]  # (height, width) in pixels, however it was given

    def __init__(
        self,
        root: str = "videos",
        frame_size: int | list[int] = 64,
        fit: Fit = "cover",
        channels: int = 3,
        split: list[float] = [0.8, 0.1, 0.1],  # noqa: B006 (never changed; None would hide it)
        split_by: Literal["clip", "time"] = "clip",
        context_length: int = 10,
        target_length: int = 10,
        frame_step: int = 1,
        stride: int = 1,
        eval_stride: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        cache_mib: int = 1024,
        seed: int = 0,
        axes: str | None = None,
        array: str | None = None,
        augment: list[Augmentation] = [],  # noqa: B006 (never changed; None would hide it)
    ) -> None:
        super().__init__(
            context_length=context_length,
            target_length=target_length,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self.span = span(context_length + target_length, frame_step)
        if eval_stride is None:
            eval_stride = self.span
        require_at_least(1, frame_step=frame_step, stride=stride, eval_stride=eval_stride)
        require_at_least(0, cache_mib=cache_mib)
        sizes = [frame_size] * 2 if isinstance(frame_size, int) else list(frame_size)
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(
                f"frame_size is {frame_size}: must be one number or [height, width], each at least "
                "1"
            )
        if fit not in FITS:
            raise ValueError(f"fit is {fit!r}: must be one of {', '.join(FITS)}")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}: must be 1 (gray) or 3 (RGB)")
        if len(split) != 3 or min(split) <= 0 or not math.isclose(sum(split), 1, abs_tol=1e-6):
            raise ValueError(
                f"split is {split}: must be three fractions above 0 that add up to 1, of train, "
                "val and test"
            )
        if split_by not in ("clip", "time"):
            raise ValueError(f"split_by is {split_by!r}: must be clip or time")
        if not isinstance(augment, list):
            raise ValueError(f"augment is {augment!r}: must be a list")
        if unknown := [name for name in augment if name not in AUGMENTATIONS]:
            raise ValueError(
                f"augment has {', '.join(map(repr, unknown))}: must be a list of "
                f"{', '.join(AUGMENTATIONS)}"
            )
        if "rotate90" in augment and sizes[0] != sizes[1]:
            raise ValueError(f"augment rotate90 is for square frames, but frame_size is {sizes}")
        self.root = root
        self.frame_size = sizes[0], sizes[1]
        self.fit: Fit = fit
        self.channels = channels
        self.split = split
        self.split_by = split_by
        self.frame_step = frame_step
        self.stride = stride
        self.eval_stride = eval_stride
        self.cache = FrameCache(cache_mib * 2**20)
        self.axes = axes
        self.array = array
        self.augment = list(augment)
        self.train_set: ClipWindows | None = None
        self.val_set: ClipWindows | None = None
        self.test_set: ClipWindows | None = None

    def setup(self, stage: str | None = None) -> None:
        """Makes the datasets of a stage: "fit", "validate", "test", or None for all.

        Raises:
            OSError: If the folder has no clips, or something in it may not be read.
            ValueError: If a clip is damaged, or a split has none that is long enough.
        """
        if stage in ("fit", None) and self.train_set is None:
            self.train_set = self._windows("train", self.stride)
        if stage in ("fit", "validate", None) and self.val_set is None:
            self.val_set = self._windows("val", self.eval_stride)
        if stage in ("test", None) and self.test_set is None:
            self.test_set = self._windows("test", self.eval_stride)

    def describe(self) -> str:
        """How many clips and windows there are for training and validation, after `setup`.

        Where the cache is too small for their frames, this is told, too: it makes a training slow.
        """
        told, size = [], 0
        for name, windows in (("training", self.train_set), ("validation", self.val_set)):
            parts = [] if windows is None else windows.parts
            clips = sum(len(part.frames) >= self.span for part in parts)
            told.append(f"{clips} for {name} ({len(windows or ()):,} windows)")
            size += 0 if windows is None else windows.source.num_bytes
        about = f"Clips: {', '.join(told)}"
        if size <= self.cache.max_bytes:
            return about
        return (
            f"{about}\nTheir decoded frames take {-(-size // 2**20):,} MiB, of which "
            f"data.cache_mib keeps {self.cache.max_bytes // 2**20:,}; the others are decoded again "
            "for each window"
        )

    def _windows(self, split: Split, stride: int) -> ClipWindows:
        parts = self._parts(split)
        short = [part.name for part in parts if len(part.frames) < self.span]
        if len(short) == len(parts):
            longest = max(len(part.frames) for part in parts)
            also = f", or give {split} a larger part of split" if self.split_by == "time" else ""
            raise ValueError(
                f"{self.root}: a window has {self.span} frames, but the longest clip for {split} "
                f"has {longest}: lower context_length, target_length or frame_step{also}"
            )
        if short:
            rank_zero_warn(
                f"{len(short)} of {len(parts)} clips for {split} are left out, as they have fewer "
                f"than a window's {self.span} frames: {_some(short)}"
            )
        return ClipWindows(
            parts,
            self.context_length,
            self.target_length,
            stride=stride,
            frame_step=self.frame_step,
            channels=self.channels,
            frame_size=self.frame_size,
            fit=self.fit,
            cache=self.cache,
            key=stream_key(self.seed, split) if split == "train" else None,
            augment=self.augment,
        )

    def _parts(self, split: Split) -> list[Part]:
        paths, ready = self._paths(split)
        parts = []
        for name, clip in self._opened(paths).items():
            frames = range(clip.num_frames)
            if not ready and self.split_by == "time":
                frames = split_frames(clip.num_frames, self.split)[split]
            parts.append(Part(name, clip, frames))
        return parts

    def _paths(self, split: Split) -> tuple[dict[str, Path], bool]:
        """The clips that a split has frames of, by name; and whether it has a folder of its own."""
        root = Path(self.root)
        if root.is_file():
            raise NotADirectoryError(f"{root}: is a file: set data.root to the folder it is in")
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder: set data.root to that of your clips")
        own = [f for f in children(root) if f.is_dir() and f.name.lower() in SPLITS]
        folders = {folder.name.lower(): folder for folder in own}
        if len(folders) < len(own):
            raise ValueError(
                f"{root}: {', '.join(f.name for f in own)} differ in the case of letters alone: "
                "make one folder a split"
            )
        ready = bool(folders)
        if ready and split not in folders:
            raise FileNotFoundError(
                f"{root / split}: no such folder, but {root} has others of "
                f"{', '.join(SPLITS)}: make it, or none of them"
            )
        paths = {
            path.relative_to(root).as_posix(): path
            for path in find_clips(folders[split] if ready else root)
        }
        if ready and split == "train":
            beside = [p.name for p in children(root) if p.is_file() and _is_clip(p)]
            if beside:
                rank_zero_warn(
                    f"{len(beside)} clips in {root} are left out, as they are in none of the "
                    f"folders {', '.join(SPLITS)}: {_some(beside)}"
                )
        if not ready and self.split_by == "clip":
            if len(paths) < 3:
                raise ValueError(
                    f"{root}: {len(paths)} clips are too few for training, validation and test: "
                    "add some, or choose split_by time, which cuts each clip in three"
                )
            paths = {n: paths[n] for n in split_names(list(paths), self.split, self.seed)[split]}
        return paths, ready

    def _opened(self, paths: dict[str, Path]) -> dict[str, ClipReader]:
        """Opens clips; of those that cannot be read it names all, and what is wrong with one."""
        clips, refused = {}, {}
        for name, path in paths.items():
            try:
                clips[name] = open_clip(path, axes=self.axes, array=self.array)
            except (OSError, ValueError) as error:
                refused[name] = error
        if refused:
            (_, first), *others = refused.items()
            if not others:
                raise first
            raise ValueError(
                f"{first}; {len(others)} more of {len(paths)} clips cannot be read: "
                f"{', '.join(name for name, _ in others)}"
            ) from first
        return clips

    def state_dict(self) -> dict[str, Any]:
        """What the training data depends on, for a checkpoint, and what parts of clips it has."""
        state: dict[str, Any] = super().state_dict()
        if state and self.train_set is not None:
            parts = [(p.name, p.frames.start, p.frames.stop) for p in self.train_set.parts]
            windows = [parts, self.stride, self.train_set.span, self.frame_step]
            text = json.dumps([*windows, sorted(set(self.augment))] if self.augment else windows)
            state["clips"] = _digest(text)
            frames = [self.channels, self.frame_size, self.fit, self.axes, self.array]
            state["frames"] = _digest(json.dumps(frames))
            state["trained_on"] = [[_digest(name), *ends] for name, *ends in parts]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that a resumed training goes on at the very next sample of the same clips.

        Warns where clips that the model was trained on are among those for validation or test.

        Raises:
            ValueError: Clips, windows, how frames are read, batch size, devices or seed differ from
                the checkpoint's.
        """
        super().load_state_dict(state_dict)
        now = self.state_dict()
        if "clips" in now and state_dict.get("clips") != now["clips"]:
            raise ValueError(
                f"{self.root}: the clips for training, or how windows are cut from them, are not "
                "those that the checkpoint was trained with: keep names, lengths, stride, "
                "frame_step and augment as they were"
            )
        if "frames" in now and state_dict.get("frames", now["frames"]) != now["frames"]:
            raise ValueError(
                f"{self.root}: frames are not read as they were for the checkpoint: keep channels, "
                "frame_size, fit, axes and array as they were"
            )
        trained_on = {name: range(*ends) for name, *ends in state_dict.get("trained_on", [])}
        for split, windows in (("validation", self.val_set), ("test", self.test_set)):
            parts = [] if windows is None else windows.parts
            seen = [part.name for part in parts if _overlaps(part, trained_on)]
            if seen:
                rank_zero_warn(
                    f"{len(seen)} of the {len(parts)} clips for {split} are ones that the model "
                    f"was trained on, such as {seen[0]}: its scores will be too good. The random "
                    "split changes with the clips; subfolders train, val and test do not"
                )


def _is_clip(path: Path) -> bool:
    """Whether a file is named as a clip, and not as one of a clip's images."""
    return path.suffix.lower() in set(FILE_SUFFIXES) - set(STILL_SUFFIXES)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def _overlaps(part: Part, others: dict[int, range]) -> bool:
    """Whether a part shares frames with that of the same clip among others, by digests of names."""
    other = others.get(_digest(part.name), range(0))
    return part.frames.start < other.stop and other.start < part.frames.stop
