"""What a user is told of a mistake in the arguments."""

import pytest
from jsonargparse import ArgumentParser

from convlstm.cli.parser import OneLineErrors, plain


class Parser(OneLineErrors, ArgumentParser):
    command = "convlstm try"


@pytest.fixture
def parser():
    parser = Parser()
    parser.add_argument("--steps", type=int)
    parser.add_argument("--size", type=int | list[int] | None)
    return parser


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "many"], "steps must be a whole number, got many"),
        (["--size", "4x4"], "size must be a whole number, a list or null, got 4x4"),
        (["--size", "[4, x]"], "size must be a whole number, a list or null, got [4, 'x']"),
        (["--step", "5"], "there is no option --step 5; did you mean --steps?"),  # no abbreviations
        (
            ["--step=a/very/long/path"],
            "there is no option --step=a/very/long/path; did you mean --steps?",
        ),
        (["-steps", "5"], "there is no option -steps 5; did you mean --steps?"),
        (["--colour", "red"], "there is no option --colour red"),
        (["more"], "unexpected: more"),
    ],
)
def test_a_mistake_is_one_plain_line_with_the_option_and_its_value(parser, capsys, words, says):
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(words)
    assert capsys.readouterr().err == (f"convlstm try: error: {says} (see convlstm try --help)\n")


def test_what_it_does_not_know_stays_as_it_is_on_one_line():
    assert plain("Problems:\n  a,\n  b") == "Problems: a, b"
    assert plain('Parser key "config":\n  no such file') == "config: no such file"


def test_choices_are_listed():
    text = """Parser key "format" element 1: Expected a typing.Literal['gif', 'png', 'npy'].
    Got value: mp5"""
    assert plain(text) == "format must be gif, png or npy, got mp5"


def test_options_of_subcommands_are_suggested_too(parser, capsys):
    above = Parser()
    above.add_subcommands().add_subcommand("sub", parser)
    with pytest.raises(SystemExit, match="2"):
        above.parse_args(["sub", "--stpes", "5"])
    assert "there is no option --stpes 5; did you mean --steps?" in capsys.readouterr().err
