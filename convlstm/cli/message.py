"""What went wrong, in one line."""

import re


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
