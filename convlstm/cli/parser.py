"""Mistakes in the arguments: one line, exit status 2."""

import re
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a word",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
    "VideoDataModule": "a class of datamodules, such as ClipDataModule,",
}


class OneLineErrors(ArgumentParser):
    """A parser that says what is wrong in one line, and takes no abbreviated options.

    Attributes:
        command: What the user called; the parsers of nested options do not know it.
    """

    command = "convlstm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program."""
        text = plain(message)
        wrong = re.match(r"there is no option ([^\s=]+)", text)
        meant = get_close_matches(wrong[1], self._options(wrong[1]), 1, 0.75) if wrong else []
        if meant:
            text += f"; did you mean {meant[0]}?"
        self.exit(2, f"{self.command}: error: {text} (see {self.command} --help)\n")

    def _options(self, wrong: str) -> list[str]:
        """All options, those of subcommands too; without dashes if the wrong one has none."""
        parsers = [self]
        for action in self._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
        words = [word for parser in parsers for word in parser._option_string_actions]
        return words if wrong.startswith("-") else [word.lstrip("-") for word in words]


def plain(message: str) -> str:
    """What jsonargparse says of an option and its value, in a user's words and on one line."""
    text = " ".join(message.split())
    unknown = re.search(r"[Oo]ption '([^']+)'( is not accepted)?$", text)
    if unknown is not None:
        return f"there is no option {unknown[1]}"
    if re.search(r"arguments are required: \w+\.data$", text):
        return "no data to train or test on: begin with a whole configuration, such as " + (
            "-c configs/moving_mnist.yaml, and add others after it"
        )
    if text.startswith("unrecognized arguments: "):
        words = text.removeprefix("unrecognized arguments: ")
        return f"there is no option {words}" if words.startswith("-") else f"unexpected: {words}"
    wrong = re.fullmatch(r'Parser key "([^"]+)"(?: element \d+)?: (.*)', text)
    if wrong is None:
        return text
    key, account = wrong.groups()
    found = re.search(r"Subtypes: \[(.*)\] Errors: .*Given value: (.*)", account) or re.fullmatch(
        r"Expected a (.*)\. Got value: (.*)", account
    )
    if found is None:
        return f"{key}: {account}"
    return f"{key} must be {_kinds(found[1])}, got {found[2]}"


def _kinds(types: str) -> str:
    """The names of types, as in "<class 'int'>, list[int]", in words."""
    words: dict[str, None] = {}  # without repetitions
    for choices, name, container in re.findall(
        r"typing\.Literal\[(.*?)\]|<class '(?:[\w.]+\.)?(\w+)'>|([\w.]+)\[[^\]]*\]", types
    ):
        if choices:
            words.update(dict.fromkeys(choices.replace("'", "").split(", ")))
        else:
            name = name or container.rpartition(".")[2]
            words[_NAMES.get(name, f"a {name}")] = None
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
