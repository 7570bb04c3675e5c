"""The command `convlstm`: its verbs, found here by name."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from difflib import get_close_matches

from convlstm import __version__
from convlstm.cli.message import one_line

HELP = """\
usage: convlstm COMMAND [options]

Video prediction: train ConvLSTM encoder-forecasters and forecast with them.

commands:
  demo       forecast with the bundled weights and train a small model in minutes; needs no data
  fit        train a model according to a configuration file
  validate   compute metrics of a trained model on the validation split
  test       compute metrics of a trained model on the test split, and of repeating the last frame
  predict    forecast how your own clips continue
  export     write a checkpoint's weights and options to one small file
  build      compile the layers' gates for this machine's processor, for speed

examples:
  convlstm demo
  convlstm fit -c configs/moving_mnist.yaml
  convlstm test -c runs/moving_mnist/config.yaml --save_forecasts forecasts/test
  convlstm predict clip.gif --pretrained moving-mnist --steps 20
  convlstm predict clip.gif --ckpt_path runs/moving_mnist/checkpoints/best.ckpt --steps 20

options:
  -h, --help   show this help; `convlstm COMMAND --help` shows the options of a command
  --version    show the version

CONVLSTM_TRACEBACK=1 in the environment shows where an error arose, instead of one line.
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


def _build(args: Sequence[str]) -> int:
    from convlstm.cli.build import run

    return run(args)


# Imports wait until the verb is known: `--help` and `--version` answer at once.
VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": _demo,
    "fit": _trainer_verb("fit"),
    "validate": _trainer_verb("validate"),
    "test": _trainer_verb("test"),
    "predict": _predict,
    "export": _export,
    "build": _build,
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command.

    A user's mistake ends it with one line on standard error. Set CONVLSTM_TRACEBACK=1 to see where
    the error arose.

    Args:
        args: The words after `convlstm`; those of the command line if None.

    Returns:
        The exit status: 0; 2 for arguments that the command does not take; 1 when something failed,
        also where a value turns out to be out of range; 130 after Ctrl-C, 143 after SIGTERM.
    """
    args = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding lacks must not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    verb = args[0] if args and args[0] in VERBS else ""
    program = f"convlstm {verb}".rstrip()
    try:
        status = VERBS[verb](args[1:]) if verb else _without_verb(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # while what goes wrong can still be said
        return status
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, FloatingPointError, OverflowError, MemoryError) as error:
        if os.environ.get("CONVLSTM_TRACEBACK") == "1":
            raise
        if isinstance(error, BrokenPipeError):
            _give_up_output()
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 1


def _without_verb(args: Sequence[str]) -> int:
    """Help and version, or what is wrong with the first word."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        print(f"convlstm {__version__}")
        return 0
    near = get_close_matches(args[0], VERBS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(VERBS)}"
    print(f"convlstm: error: there is no command '{args[0]}': {hint}", file=sys.stderr)
    return 2


def _give_up_output() -> None:
    """Lets what is still to be written vanish, as its reader has, or Python will try in the end."""
    with suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
