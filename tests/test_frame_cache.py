import pickle

import numpy as np
import pytest

from datamodules.frame_cache import FrameCache


def kilobyte(value=0):
    return np.full(1024, value, dtype=np.uint8)


def never():
    pytest.fail("made anew")


def test_what_fits_is_made_once():
    cache = FrameCache(3 * 1024)
    for key in "abc":
        cache.get(key, lambda key=key: kilobyte(ord(key)))
    assert [cache.get(key, never)[0] for key in "abc"] == [97, 98, 99]


def test_what_was_not_used_for_longest_goes_first():
    cache = FrameCache(3 * 1024)
    for key in "abc":
        cache.get(key, kilobyte)
    cache.get("a", never)
    cache.get("d", kilobyte)
    for key in "acd":
        cache.get(key, never)
    assert cache.get("b", lambda: kilobyte(7))[0] == 7


def test_it_never_keeps_more_than_its_budget():
    cache = FrameCache(5000)
    rng = np.random.default_rng(0)
    for key in rng.integers(0, 20, 200):
        cache.get(int(key), lambda: np.zeros(rng.integers(1, 6000), np.uint8))
        assert cache.num_bytes <= 5000
    assert cache.num_bytes > 0


def test_what_is_larger_than_the_budget_goes_through_and_moves_nothing():
    cache = FrameCache(1500)
    cache.get("small", kilobyte)
    assert len(cache.get("large", lambda: np.zeros(2000, np.uint8))) == 2000
    cache.get("small", never)


def test_another_process_starts_with_an_empty_one_of_the_same_budget():
    cache = FrameCache(3 * 1024)
    cache.get("a", kilobyte)
    other = pickle.loads(pickle.dumps(cache))
    assert (other.max_bytes, other.num_bytes) == (3 * 1024, 0)
    assert other.get("a", lambda: kilobyte(5))[0] == 5
