"""What is wrong with a configuration file although jsonargparse takes it."""

from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from pydoc import locate
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from pytorch_lightning import Trainer

from convlstm.cli.message import quoted
from convlstm.module import VideoPredictor
from datamodules import VideoDataModule

SECTIONS = ("model", "trainer")
NAMES = ("run_dir", "ckpt_path", "start_from", "pretrained", "save_forecasts")
# What Lightning takes and then stumbles over; below 0 the last one would turn each step around.
LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}


def configuration_files(words: Sequence[str]) -> list[Path]:
    """The files that a command line names with `-c` or `--config`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    return [Path(name) for name in parser.parse_known_args(words)[0].config if name]


def find_mistake(path: Path) -> str | None:
    """What is wrong with a file that is there, if anything.

    It is no YAML; a key stands twice, of which only the last would count; or a section has no
    options.
    """
    if not path.is_file():
        return None  # jsonargparse says so
    try:
        text = path.read_text(encoding="utf-8")
        mappings = list(_mappings(yaml.compose(text, yaml.SafeLoader)))
        content = yaml.safe_load(text)
    except UnicodeDecodeError:
        return "no configuration, which would be text"
    except RecursionError:
        return "no configuration: it contains itself"
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        if mark is None:
            return "no configuration, which would be text"
        return f"line {mark.line + 1}: {error.problem}"  # type: ignore[attr-defined]
    for mapping in mappings:
        seen = set()
        for key, _ in mapping.value:
            if key.value in seen:
                return f"line {key.start_mark.line + 1}: {key.value} appears twice"
            seen.add(key.value)
    if not isinstance(content, dict):
        return f"a configuration must be a mapping of options, got {content or 'nothing'}"
    for key in SECTIONS:
        if not isinstance(content.get(key, {}), dict):
            return f"{key} must be a mapping of options, got {content[key]}"
    return None


def check_values(config: Any) -> None:
    """Refuses values that jsonargparse takes, and that would fail later or mean something else.

    Args:
        config: The configuration of `fit`, `validate` or `test`.

    Raises:
        ValueError: A value is null, empty or out of range; or the data's class is missing.
    """
    kind: Any = locate(config.data.class_path) if config.data else VideoDataModule
    if kind is VideoDataModule:
        raise ValueError("data needs a class_path, such as MovingMNISTDataModule or ClipDataModule")
    data = config.data.init_args or {}
    sections = ("model", VideoPredictor, config.model), ("trainer", Trainer, config.trainer)
    for section, built, options in (*sections, ("data", kind, data)):
        _refuse_nulls(section, built, options)
        for name, value in options.items():
            numbers = value if isinstance(value, list) else [value]
            if any(isinstance(number, int) and abs(number) >= 2**63 for number in numbers):
                raise ValueError(f"{section}.{name} is too large: {value}")
    given = {name: config.get(name) for name in NAMES}
    for name, value in {**given, "data.root": data.get("root")}.items():
        if value == "":  # the current folder, to Python
            raise ValueError(f"{name} must not be empty")
    for name, least in LEAST.items():
        value = config.trainer[name]
        if value is not None and not value >= least:
            raise ValueError(f"trainer.{name} must be >= {least}, got {value}")
    if config.trainer.val_check_interval == 0:
        raise ValueError(
            "trainer.val_check_interval must be above 0, got 0: to train without validations, set "
            "trainer.limit_val_batches to 0"
        )


def refuse_moved(files: Iterable[Path], run_dir: Path) -> None:
    """A run's own configuration names its directory, which may have got another name since.

    Args:
        files: Configuration files.
        run_dir: The directory that they name.

    Raises:
        ValueError: One is of a run that is not in that directory.
    """
    for path in files:
        own = path.parent
        is_runs = path.name == "config.yaml" and (own / "checkpoints").is_dir()
        if is_runs and own.resolve() != run_dir.resolve():
            raise ValueError(
                f"{path} is of a run that was moved here from {run_dir}: give --run_dir "
                f"{quoted(own)}, or that of another run"
            )


def _refuse_nulls(section: str, kind: Any, options: Any) -> None:
    """Refuses null where a class does not take it; jsonargparse takes it from files."""
    hints = get_type_hints(kind.__init__)
    for name, option in signature(kind).parameters.items():
        null = options.get(name, 0) is None and option.default is not None
        if null and NoneType not in get_args(hints.get(name)):
            raise ValueError(f"{section}.{name} must not be null")


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """All mappings at or below a node."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)
