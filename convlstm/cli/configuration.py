"""What is wrong with a configuration file although jsonargparse takes it."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

SECTIONS = ("model", "trainer")


def find_mistake(text: str) -> str | None:
    """A key that stands twice, of which only the last would count, or a section without options.

    Args:
        text: The file's content, YAML that can be read.
    """
    root = yaml.compose(text, yaml.SafeLoader)
    for mapping in _mappings(root):
        seen = set()
        for key, _ in mapping.value:
            if key.value in seen:
                return f"line {key.start_mark.line + 1}: {key.value} is there twice"
            seen.add(key.value)
    content = yaml.safe_load(text) or {}
    for key in SECTIONS:
        if not isinstance(content.get(key, {}), dict):
            return f"{key} must be a mapping of options, got {content[key]}"
    return None


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
                f"{shlex.quote(str(own))}, or that of another run"
            )


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """All mappings at or below a node."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)
