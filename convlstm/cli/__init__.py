"""The command `convlstm`: its verbs, found here by name."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from convlstm import __version__

HELP = """\
usage: convlstm COMMAND [options]

Video prediction: train ConvLSTM encoder-forecasters and forecast with them.

commands:
  demo       train a small model in a few minutes and write its forecasts; needs no data
  fit        train a model according to a configuration file
  validate   compute metrics of a trained model on the validation split
  test       compute metrics of a trained model on the test split, and of repeating the last frame
  predict    forecast how your own clips continue
  export     write a checkpoint's weights and options to one small file

examples:
  convlstm demo
  convlstm fit -c configs/moving_mnist.yaml
  convlstm test -c runs/moving_mnist/config.yaml --save_forecasts forecasts/test
  convlstm predict clip.gif --pretrained moving-mnist --steps 20
  convlstm predict clip.gif --ckpt_path runs/moving_mnist/checkpoints/best.ckpt --steps 20

options:
  -h, --help   show this help; `convlstm COMMAND --help` shows the options of a command
  --version    show the version
"""


def _trainer_verb(verb: str) -> Callable[[Sequence[str]], int]:
    def run(args: Sequence[str]) -> int:
        from convlstm.cli.train import run as run_trainer

        return run_trainer(verb, args)

    return run


def _predict(args: Sequence[str]) -> int:
    from convlstm.cli.predict import run

    return run(args)


def _demo(args: Sequence[str]) -> int:
    from convlstm.cli.demo import run

    return run(args)


def _export(args: Sequence[str]) -> int:
    from convlstm.cli.export import run

    return run(args)


# Imports wait until the verb is known: `--help` and `--version` answer at once.
VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "fit": _trainer_verb("fit"),
    "validate": _trainer_verb("validate"),
    "test": _trainer_verb("test"),
    "predict": _predict,
    "export": _export,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    A user's mistake ends it with one line on standard error. Set CONVLSTM_TRACEBACK=1 to see where
    the error arose.

    Args:
        args: The words after `convlstm`; those of the command line if None.

    Returns:
        The exit status: 0; 2 for words that the command does not take; 1 when something failed, be
        it for a value out of range; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"convlstm {__version__}")
        return 0
    verb = args[0]
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(VERBS)}"
        print(f"convlstm: error: there is no command '{verb}': {hint}", file=sys.stderr)
        return 2
    try:
        return VERBS[verb](args[1:])
    except KeyboardInterrupt:
        print(f"convlstm {verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        if os.environ.get("CONVLSTM_TRACEBACK") == "1":
            raise
        print(f"convlstm {verb}: error: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: Exception) -> str:
    """An error's message on one line; of the system's, what happened to which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error)
    if text.startswith("Caught ") and " in DataLoader worker process " in text:
        text = re.split(r"\n\w*Error: ", text)[-1]  # what follows the traceback
    return " ".join(text.split()) or type(error).__name__
