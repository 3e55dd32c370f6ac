"""Pickles of containers, numbers and arrays of bytes, read without running what is in them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbadrop.data.dataset import DataError

__all__ = ["read_pickle"]


def read_pickle(name: str, content: bytes) -> Any:
    """Return what a pickle of Python 2 or 3 holds; strings of Python 2 become bytes.

    A pickle is a program that may call any function. Here it finds stand-ins for NumPy's array
    and dtype, which only take down what they are given, and nothing else.

    Parameters
    ----------
    name : str
        For messages.
    content : bytes

    Raises
    ------
    DataError
        If the pickle is broken, or holds anything but containers, numbers, strings and arrays of
        uint8.

    Examples
    --------
    >>> read_pickle("labels", pickle.dumps({b"labels": [3, 8]}))
    {b'labels': [3, 8]}
    >>> read_pickle("hostile", pickle.dumps(print))
    Traceback (most recent call last):
    numbadrop.data.dataset.DataError: hostile: not a readable pickle, it asks for ...print...
    """
    try:
        return _resolved(_Unpickler(io.BytesIO(content), encoding="bytes").load())
    # A broken pickle makes the machine that reads it fail in any way.
    except Exception as error:
        raise DataError(f"{name}: not a readable pickle, {error}") from error


class _DType:
    """Takes down the code of a dtype; its state, the byte order, means nothing to single bytes."""

    def __init__(self, code: Any, *flags: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Takes down the state of an array."""

    def __init__(self, *template: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def resolve(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, elements = self.state
        if dtype.code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array must be of uint8, got {dtype.code!r}")
        return np.frombuffer(elements, np.uint8).reshape(shape, order="F" if fortran else "C")


def _resolved(loaded: Any) -> Any:
    if isinstance(loaded, dict):
        return {key: _resolved(value) for key, value in loaded.items()}
    return loaded.resolve() if isinstance(loaded, _Array) else loaded


STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
}


# A few bytes can ask for a table of any length from the unpickler in C, where this one has a dict.
class _Unpickler(pickle._Unpickler):
    dispatch = pickle._Unpickler.dispatch.copy()
    # Nor may they ask for an array of zeros of any length.
    del dispatch[pickle.BYTEARRAY8[0]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return STAND_INS[module, name]
