from itertools import chain

import pytest

from datamodules.clip_splits import split_frames, split_names

TENTHS = [0.8, 0.1, 0.1]
NAMES = [f"clip{number}.mp4" for number in range(40)]


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (3, TENTHS, (1, 1, 1)),
        (4, TENTHS, (2, 1, 1)),
        (10, TENTHS, (8, 1, 1)),
        (40, [0.5, 0.25, 0.25], (20, 10, 10)),
        (3, [0.01, 0.01, 0.98], (1, 1, 1)),
        (3, [0.01, 0.98, 0.01], (1, 1, 1)),
        (5, [0.02, 0.49, 0.49], (1, 2, 2)),
        (7, [0.2, 0.4, 0.4], (1, 3, 3)),
    ],
)
def test_each_name_is_in_one_split_and_each_split_has_its_fraction_or_one(count, fractions, sizes):
    split = split_names(NAMES[:count], fractions, seed=0)
    assert tuple(map(len, split.values())) == sizes
    assert sorted(chain.from_iterable(split.values())) == sorted(NAMES[:count])


def test_the_split_is_drawn_by_the_seed_and_not_by_the_order_of_names():
    split = split_names(NAMES, TENTHS, seed=3)
    backwards = split_names(NAMES[::-1], TENTHS, seed=3)
    assert {s: names[::-1] for s, names in backwards.items()} == split
    assert len({str(split_names(NAMES, TENTHS, seed)) for seed in range(20)}) == 20


def test_names_keep_their_order_within_a_split():
    for names in split_names(NAMES, [0.4, 0.3, 0.3], seed=0).values():
        assert names == sorted(names, key=NAMES.index)


def test_a_new_clip_moves_few_of_the_others():
    before, after = (split_names(NAMES[:n], TENTHS, seed=0) for n in (30, 31))
    for split in ("val", "test"):
        assert len(set(before[split]) - set(after[split])) <= 1


@pytest.mark.parametrize("frames", [1, 10, 99, 1000])
def test_in_time_training_comes_first_and_the_test_last(frames):
    parts = split_frames(frames, TENTHS)
    assert list(parts) == ["train", "val", "test"]
    assert [n for part in parts.values() for n in part] == list(range(frames))
    assert abs(len(parts["train"]) - 0.8 * frames) <= 0.5
