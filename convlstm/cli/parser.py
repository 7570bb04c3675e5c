"""Mistakes in the arguments: one line, exit status 2."""

from typing import NoReturn

from jsonargparse import ArgumentParser


class OneLineErrors(ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program."""
        parser = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        text = " ".join(message.split())
        self.exit(2, f"{prog}: error: {text} (see {prog} --help)\n")
