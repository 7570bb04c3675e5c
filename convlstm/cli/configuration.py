"""What is wrong with a configuration file although jsonargparse takes it."""

from collections.abc import Iterator

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


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """All mappings at or below a node."""
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)
