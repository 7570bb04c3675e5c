import pickle

import numpy as np

from datamodules.frame_cache import FrameCache


def kilobyte(value=0):
    return np.full(1024, value, dtype=np.uint8)


def filled(*keys, size=3 * 1024):
    cache = FrameCache(size)
    for key in keys:
        cache.put(key, kilobyte(ord(key)))
    return cache


def test_what_fits_is_kept():
    cache = filled(*"abc")
    assert [cache.get(key)[0] for key in "abc"] == [97, 98, 99]
    assert cache.get("d") is None
    assert "a" in cache
    assert "d" not in cache


def test_what_was_not_used_for_longest_goes_first():
    cache = filled(*"abc")
    cache.get("a")
    cache.put("d", kilobyte())
    assert [key for key in "abcd" if key in cache] == ["a", "c", "d"]


def test_asking_whether_something_is_kept_is_no_use_of_it():
    cache = filled(*"abc")
    assert "a" in cache
    cache.put("d", kilobyte())
    assert "a" not in cache


def test_it_never_keeps_more_than_its_budget_and_says_how_much_room_is_left():
    cache = FrameCache(5000)
    rng = np.random.default_rng(0)
    for key in range(200):
        size = int(rng.integers(1, 6000))
        there = size <= cache.room
        before = [k for k in range(key) if k in cache]
        cache.put(key, np.zeros(size, np.uint8))
        assert 0 <= cache.room == 5000 - cache.num_bytes
        assert (key in cache) == (size <= 5000)
        if there:
            assert all(k in cache for k in before)
    assert cache.num_bytes > 0


def test_what_is_larger_than_the_budget_is_not_kept_and_moves_nothing():
    cache = filled("a", size=1500)
    cache.put("large", np.zeros(2000, np.uint8))
    assert cache.get("large") is None
    assert cache.get("a")[0] == 97


def test_another_process_starts_with_an_empty_one_of_the_same_budget():
    other = pickle.loads(pickle.dumps(filled("a")))
    assert (other.max_bytes, other.num_bytes) == (3 * 1024, 0)
    assert other.get("a") is None


def test_an_array_as_large_as_the_budget_is_kept():
    cache = FrameCache(8)
    cache.put("a", np.zeros(8, np.uint8))
    assert "a" in cache
    assert cache.room == 0
