"""Where a training starts: anew, from trained weights, or from a checkpoint that it continues."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from convlstm.checkpoint import newest_checkpoint, read_checkpoint
from convlstm.forecaster import EncoderForecaster
from convlstm.module import VideoPredictor
from convlstm.pretrained import read_pretrained

DEFAULTS = {name: option.default for name, option in signature(VideoPredictor).parameters.items()}
# What shapes the network, as opposed to how it is trained: weights bring it with them.
NETWORK = [
    name
    for name in DEFAULTS
    if name in signature(EncoderForecaster).parameters
    and name not in ("frame_size", "checkpoint_every")
]


class Finished(Exception):
    """The run that is to be continued has come to its end."""


@dataclass(frozen=True)
class Start:
    """Where a training starts.

    Attributes:
        step: Steps that are done already; 0 unless it continues a checkpoint.
        frame_size: [H, W] that the checkpoint was trained on, if known.
        source: Name or file of trained weights to start from, if any.
        weights: Their state dict.
        notice: What the user should know of it.
    """

    step: int = 0
    frame_size: list[int] | None = None
    source: str | None = None
    weights: dict[str, Tensor] | None = None
    notice: str | None = None

    def apply(self, model: VideoPredictor) -> None:
        """Gives a model what it starts from; Lightning loads the checkpoint."""
        if self.frame_size is not None:
            model.hparams["frame_size"] = self.frame_size
        if self.weights is not None:
            model.load_state_dict(self.weights)


def settle_start(config: Any, run_dir: Path, words: Sequence[str]) -> Start:
    """Turns `--resume`, `--ckpt_path` and `--start_from` into one of the three.

    Args:
        config: The configuration of `convlstm fit`. Its `ckpt_path` becomes that of the checkpoint
            to continue, if any; what shapes the network becomes that of the weights.
        run_dir: The run's directory.
        words: The command line: an option that was typed is never replaced by the weights'.

    Raises:
        Finished: The checkpoint is the end of its run.
        FileNotFoundError: There is no such checkpoint, or no such weights.
        ValueError: A file is damaged; or options contradict each other, the weights or the
            checkpoint.
    """
    typed = _typed(words)
    path, checkpoint = _find_checkpoint(config, run_dir / "checkpoints")
    config.ckpt_path = path
    if path is None:
        if config.start_from is None:
            return Start()
        weights, options = read_pretrained(config.start_from)
        VideoPredictor.rebuilt(weights, options, config.start_from)
        replaced = _take_network(config.model, options, typed, config.start_from)
        notice = f"Starting from the weights {config.start_from}"
        if replaced:
            notice += f"; they bring their network with them: {replaced}"
        return Start(source=config.start_from, weights=weights, notice=notice)
    options = checkpoint["hyper_parameters"]
    VideoPredictor.rebuilt(checkpoint["state_dict"], options, path)
    notice = f"Resuming from step {checkpoint.get('global_step', 0)}: {path}"
    if config.resume:
        recorded = _recorded(run_dir)
        _keep_origin(config, recorded, run_dir)
        notice += _new_precision(config.trainer, recorded.get("trainer"))
    if config.start_from is not None:
        _take_network(config.model, options, typed, path)
    _check_options(config.model, options, path, run_dir)
    _check_schedule(path, checkpoint, config.trainer.max_steps)
    step = checkpoint.get("global_step", 0)
    if _is_finished(checkpoint, step, config.trainer):
        raise Finished(
            f"The training is finished: {path} is its end, at step {step}. To train it on, begin "
            f"another run: --start_from {path} --run_dir NEW"
        )
    return Start(step=step, frame_size=options.get("frame_size"), notice=notice)


def tested_checkpoint(config: Any, run_dir: Path, words: Sequence[str]) -> str | None:
    """The checkpoint that `convlstm test` and `validate` take; None for those of `--pretrained`.

    Args:
        config: The configuration of the command.
        run_dir: The run's directory.
        words: The command line: an option of the model that was typed must be the checkpoint's.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, has other options, or --pretrained is given too.
    """
    name = config.ckpt_path
    if config.pretrained is not None:
        if name is not None:
            raise ValueError("give --pretrained or --ckpt_path, not both")
        return None
    folder = run_dir / "checkpoints"
    if name in (None, "best", "last"):
        path = folder / f"{name or 'best'}.ckpt"
        if name is None and not path.exists() and (folder / "last.ckpt").exists():
            path = folder / "last.ckpt"  # a training without validations has no best one
        name = str(path)
    checkpoint = read_checkpoint(name)
    VideoPredictor.rebuilt(checkpoint["state_dict"], checkpoint["hyper_parameters"], name)
    options = {**DEFAULTS, **checkpoint["hyper_parameters"]}
    for option in _typed(words):
        if option in options and config.model[option] != options[option]:
            raise ValueError(
                f"--model.{option} is {config.model[option]}, but {name} has {options[option]}, "
                "and a checkpoint brings its options with it: leave the option out"
            )
    return str(name)


def _typed(words: Sequence[str]) -> set[str]:
    """The options of the model that are on the command line."""
    return {found[1] for word in words if (found := re.match(r"--model\.(\w+)", word))}


def _find_checkpoint(config: Any, folder: Path) -> tuple[str | None, dict[str, Any]]:
    """The checkpoint that a training continues, if any, and its content."""
    name = config.ckpt_path
    if config.resume:
        if name is not None:
            raise ValueError("give --resume or --ckpt_path, not both")
        newest = newest_checkpoint(folder)
        return (None, {}) if newest is None else (str(newest[0]), newest[1])
    if name is None:
        if any(folder.glob("[!.]*.ckpt")) and not config.trainer.fast_dev_run:
            raise ValueError(
                f"{folder.parent} already holds a run: continue it with --resume, or name another "
                "--run_dir"
            )
        return None, {}
    path = str(folder / f"{name}.ckpt") if name in ("best", "last") else name
    return path, read_checkpoint(path)


def _take_network(model: Any, options: dict[str, Any], typed: set[str], source: str) -> str:
    """Puts what shapes the network of trained weights into the configuration of a model.

    The other options say how to train, and stay; of the loss only what it makes of the output.

    Returns:
        What was replaced, in words; empty if nothing was.

    Raises:
        ValueError: An option on the command line contradicts the weights.
    """
    theirs = {**DEFAULTS, **options}
    names = list(NETWORK)
    if theirs["peephole"] == "full":
        names.append("frame_size")  # its weights are tied to the pixels
    if (theirs["loss"] == "cross_entropy") != (model["loss"] == "cross_entropy"):
        names.append("loss")  # with or without a sigmoid behind the network
    replaced = []
    for name in names:
        if model[name] == theirs[name]:
            continue
        if name in typed:
            raise ValueError(
                f"--model.{name} is {model[name]}, but {source} has {theirs[name]}, and weights "
                "bring their network with them: leave the option out"
            )
        replaced.append(f"{name} {theirs[name]} (not {model[name]})")
        model[name] = theirs[name]
    return ", ".join(replaced)


def _recorded(run_dir: Path) -> dict[str, Any]:
    """A run's config.yaml; empty where there is none: a checkpoint alone can be continued, too."""
    try:
        recorded = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _keep_origin(config: Any, recorded: dict[str, Any], run_dir: Path) -> None:
    """A run that goes on keeps what it started from, which its config.yaml notes.

    Raises:
        ValueError: The run did not start from the weights that are asked for.
    """
    origin = recorded.get("start_from")
    if recorded and config.start_from not in (None, origin):
        raise ValueError(
            f"--start_from is {config.start_from}, but {run_dir} started from "
            f"{origin or 'no weights'}: leave the option out, or name another --run_dir"
        )
    config.start_from = origin if recorded else config.start_from


def _new_precision(trainer: Any, recorded: Any) -> str:
    """What to say where a run goes on in another precision, as on another device it may."""
    if not isinstance(recorded, dict):
        return ""
    before, now = (
        str(value or "32-true") for value in (recorded.get("precision"), trainer.precision)
    )
    return "" if now == before else f"; in precision {now}, no longer {before}"


def _check_options(model: Any, options: dict[str, Any], path: str, run_dir: Path) -> None:
    """A training that goes on keeps the model's options, but for that which only saves memory.

    Raises:
        ValueError: One differs from the checkpoint's.
    """
    kept = {**DEFAULTS, **options}
    del kept["checkpoint_every"]
    del kept["frame_step"]  # the data checks its own
    for name, trained in kept.items():
        noted = name == "frame_size" and model["peephole"] != "full"  # when training begins
        if noted or model.get(name) == trained:
            continue
        key = "data.context_length" if name == "context_length" else f"model.{name}"
        raise ValueError(
            f"--{key} is {model.get(name)}, but {path} was trained with {trained}: a training "
            f"keeps its options when it goes on, as -c {run_dir / 'config.yaml'} --resume does"
        )


def _check_schedule(path: str, checkpoint: dict[str, Any], max_steps: int) -> None:
    """A schedule that ends with the run cannot end with a longer one."""
    for schedule in checkpoint.get("lr_schedulers", ()):
        steps = schedule.get("total_steps", max_steps)
        if steps != max_steps:
            raise ValueError(
                f"the learning rate of {path} was planned for {steps} steps: continue it with "
                f"--trainer.max_steps {steps}, not {max_steps}"
            )


def _is_finished(checkpoint: dict[str, Any], step: int, trainer: Any) -> bool:
    """Whether a training that goes on from the checkpoint would have nothing to do."""
    epochs = checkpoint.get("finished_epochs")
    if epochs is None:  # it was interrupted, perhaps in the last validation
        return False
    return bool(step >= trainer.max_steps > 0 or epochs >= (trainer.max_epochs or 0) > 0)
