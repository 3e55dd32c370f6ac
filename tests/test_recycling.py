"""Large arrays take the memory that others have left, and never memory that is in use."""

from __future__ import annotations

import gc
import sys
import threading

import numpy as np
import pytest

from numbadrop.kernels import recycling
from numbadrop.kernels.recycling import empty_host, release_memory
from numbadrop.nn import Conv2d, MaxPool2d, ReLU, Sequential

FLOAT = np.dtype(np.float32)
LARGE = (1 << 9, 1 << 10)


@pytest.fixture(autouse=True)
def _nothing_kept():
    gc.collect()
    release_memory()
    yield
    release_memory()


def address(array):
    return array.ctypes.data


@pytest.mark.parametrize("shape", [(), (0,), (0, 1 << 30), (3, 5), LARGE, (7, *LARGE)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_it_is_an_array_like_any_other(shape, dtype):
    array = empty_host(shape, np.dtype(dtype))
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    array[...] = 1
    assert (array == 1).all()
    assert array.nbytes < recycling._FROM_BYTES or address(array) % 64 == 0


def test_what_was_left_is_given_back_where_memory_ends(monkeypatch):
    array = empty_host(LARGE, FLOAT)
    del array
    assert recycling._free
    empty = np.empty

    def scarce(shape, dtype):
        if recycling._free:
            raise MemoryError
        return empty(shape, dtype)

    monkeypatch.setattr(recycling.np, "empty", scarce)
    larger = empty_host((3 * LARGE[0], LARGE[1]), FLOAT)
    monkeypatch.undo()
    assert larger.shape == (3 * LARGE[0], LARGE[1])


def test_what_was_left_is_used_again():
    array = empty_host(LARGE, FLOAT)
    before = address(array)
    del array
    assert address(empty_host(LARGE, FLOAT)) == before
    # Half as large is near enough, a third is not.
    assert address(empty_host((LARGE[0] // 2, LARGE[1]), FLOAT)) == before
    huge = empty_host((3 * LARGE[0], LARGE[1]), FLOAT)
    before = address(huge)
    del huge
    assert address(empty_host(LARGE, FLOAT)) != before


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[3:],
        lambda array: array[::2, 5:].T,
        lambda array: array.view(np.int32)[1][2:],
        lambda array: memoryview(array)[1:],
        lambda array: np.lib.stride_tricks.sliding_window_view(array, (2, 2)),
        lambda array: np.asarray(array.view(type("Own", (np.ndarray,), {}))[2:]),
        lambda array: array.ctypes,
        lambda array: iter(array),
    ],
)
def test_no_view_ever_shares_memory_with_a_new_array(hold):
    array = empty_host(LARGE, FLOAT)
    before = address(array)
    held = hold(array)
    del array
    gc.collect()
    assert address(empty_host(LARGE, FLOAT)) != before
    del held
    gc.collect()
    others = [empty_host(LARGE, FLOAT) for _ in range(2)]
    assert before in map(address, others)


def test_a_copy_holds_nothing():
    array = empty_host(LARGE, FLOAT)
    before, copy = address(array), array.copy()
    del array
    assert address(empty_host(LARGE, FLOAT)) == before
    assert copy.base is None


def test_the_memory_that_waits_is_bounded(monkeypatch):
    size = 4 * LARGE[0] * LARGE[1] + recycling.CACHE_LINE
    monkeypatch.setattr(recycling, "_MOST_BYTES", 3 * size)
    arrays = [empty_host(LARGE, FLOAT) for _ in range(5)]
    places = list(map(address, arrays))
    while arrays:
        del arrays[0]
    again = empty_host((1 << 25,), FLOAT)
    assert sum(memory.nbytes for memory in recycling._free) == 3 * size
    # The latest are kept.
    kept = [memory.ctypes.data for memory in recycling._free]
    assert all(0 <= place - at < 64 for place, at in zip(places[2:], kept, strict=True))
    del again


def test_the_memory_that_waits_is_bounded_at_once(monkeypatch):
    """The next large array may never come."""
    monkeypatch.setattr(recycling, "_MOST_BYTES", 0)
    empty_host(LARGE, FLOAT)
    assert not recycling._free
    assert recycling._left.empty()


def test_release():
    empty_host(LARGE, FLOAT)
    release_memory()
    assert not recycling._free


def test_many_threads_never_get_the_same_memory():
    wrong = []
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        for turn in range(25):
            array = empty_host((1 << 9, 1 << 9 | (turn % 3)), FLOAT)
            array[:] = number
            other = empty_host((1 << 9, 1 << 9), FLOAT)
            other[:] = -number
            if not ((array == number).all() and (other == -number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_a_steady_step_asks_the_system_for_no_memory():
    import resource

    net = Sequential(Conv2d(1, 16, 1), ReLU(), MaxPool2d(2), Conv2d(16, 3, 3)).seed(0)
    x = np.ones((150, 64, 64, 1), FLOAT)

    def step():
        y = net(x).values
        y.backward(np.ones_like(y.value))

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for _ in range(5):
        step()
    before = faults()
    for _ in range(5):
        step()
    # What the first layer makes is 39 MB, which malloc gives back each time: 9600 pages.
    assert faults() - before < 5000
