"""A training of a few seconds, for the tests of the command."""

from convlstm.cli import main

CONFIG = {
    "model": {"patch_size": 4, "hidden_sizes": [2]},
    "data": {
        "class_path": "MovingMNISTDataModule",
        "init_args": {
            "digits": "builtin",
            "frame_size": 32,
            "context_length": 2,
            "target_length": 3,
            "val_size": 3,
            "test_size": 5,
            "batch_size": 2,
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 1,
        "check_val_every_n_epoch": None,
    },
}


def files(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def fails(capsys, status, *words):
    """Runs the command and returns the one line that it wrote to standard error."""
    capsys.readouterr()
    try:
        got = main(list(words))
    except SystemExit as error:
        got = error.code
    lines = capsys.readouterr().err.splitlines()
    assert got == status, lines
    assert len(lines) == 1, lines
    return lines[0]
