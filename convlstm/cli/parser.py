"""Mistakes in the arguments: one line, exit status 2."""

from typing import NoReturn

from jsonargparse import ArgumentParser


class OneLineErrors(ArgumentParser):
    """A parser that says what is wrong in one line.

    Attributes:
        command: What the user called; the parsers of nested options do not know it.
    """

    command = "convlstm"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program."""
        text = " ".join(message.split())
        self.exit(2, f"{self.command}: error: {text} (see {self.command} --help)\n")
