"""What is read of arrays and bytes without asking them."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from numbadrop import address
from numbadrop.address import address_of, address_of_bytes
from numbadrop.kernels.jit import entry
from numbadrop.kernels.memory import array_data, array_length, array_stride, stack_memory

ARRAYS = {
    "C": np.ones((3, 5)),
    "F": np.ones((3, 5), order="F"),
    "view": np.ones((9, 8), np.float32)[1::3, 2:7],
    "reversed": np.ones((3, 5))[::-1, ::-1],
    "broadcast": np.broadcast_to(np.ones(5), (3, 5)),
    "empty": np.ones((0, 5)),
    "subclass": np.ones((3, 5)).view(type("Sub", (np.ndarray,), {})),
}


@entry
def describe(array):
    return (
        array_data(array),
        array_length(array, 0), array_length(array, 1),
        array_stride(array, 0), array_stride(array, 1),
    )  # fmt: skip


@entry
def pieces_of_stack():
    return stack_memory(100), stack_memory(1)


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_what_numpy_says(kind):
    array = ARRAYS[kind]
    assert address_of(array) == array.ctypes.data
    assert describe(id(array)) == (array.ctypes.data, *array.shape, *array.strides)


def test_bytes():
    data = bytes(range(64))
    assert ctypes.string_at(address_of_bytes(data), len(data)) == data


@pytest.mark.parametrize("name", ["DATA", "DESCR", "FLAGS", "NDIM", "SHAPE", "STRIDES", "_BYTES"])
def test_another_layout_is_refused_when_the_package_is_imported(name, monkeypatch):
    # A place within the structure where something else lies.
    wrong = {"DATA": 8, "DESCR": address.STRIDES, "_BYTES": 0}
    monkeypatch.setattr(address, name, wrong.get(name, address.DESCR))
    with pytest.raises(ImportError, match=f"cannot read the arrays of NumPy {np.__version__}"):
        address._try_layout()


def test_memory_of_the_stack_is_apart_and_on_cache_lines():
    one, other = pieces_of_stack()
    assert one % 64 == other % 64 == 0
    assert abs(one - other) >= 64
