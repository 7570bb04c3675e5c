"""What is said to the user."""

import os
import re
import shlex
import subprocess
from pathlib import Path


def one_line(error: Exception) -> str:
    """An error's message on one line; of the system's, what happened to which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if isinstance(error, MemoryError) and not text:
        return "not enough memory"
    if text.startswith("Caught ") and " in DataLoader worker process " in text:
        text = re.split(r"\n\w*Error: ", text)[-1]  # what follows the traceback
    return " ".join(text.split()) or type(error).__name__


def quoted(path: Path) -> str:
    """A path as the shell takes it."""
    word = str(path)
    return subprocess.list2cmdline([word]) if os.name == "nt" else shlex.quote(word)
