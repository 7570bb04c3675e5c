"""What the program says on standard output: plain lines, and tables."""

from rich.console import Console


def plain_console(*, quiet: bool = False) -> Console:
    """A console that prints text as it is: paths may have brackets, and stay on one line."""
    return Console(soft_wrap=True, highlight=False, markup=False, quiet=quiet)
