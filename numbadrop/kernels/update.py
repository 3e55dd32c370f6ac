"""Optimizer rules on a block of the weights, in place.

A step touches the rows and columns that were active and leaves every other weight and slot
bit-identical. The gradient of a row is spread to full width beside a mask, and the rule runs down
the whole row under that mask: such a loop the compiler turns into vector code, and at any keep
probability in use nearly every cache line of an active row holds an active weight anyway. Where
masked stores are slow it runs down a copy of the row, of which the active weights are written back
one by one: whole registers would overwrite what a user's other thread may make of other columns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import carray
from numba.extending import overload

from numbadrop.index_set import IndexSet
from numbadrop.kernels.arrays import (
    LARGEST_FACTOR,
    Array,
    Units,
    check_apart,
    check_dtype,
    check_is_array,
    check_real,
    check_same_memory,
    count_units,
    resolve,
)
from numbadrop.kernels.denormals import flush_denormals, restore_denormals
from numbadrop.kernels.device import cuda, is_host
from numbadrop.kernels.elements import MACHINE, bytes_of, lanes
from numbadrop.kernels.jit import DONE, inlined, inner
from numbadrop.kernels.memory import (
    address_in,
    array_data,
    array_stride,
    as_pointer,
    clear_bytes,
    copy_bytes,
    first_of,
    keep_alive,
    load,
    load_index,
    store,
    words_behind,
)
from numbadrop.kernels.shares import share
from numbadrop.kernels.task import Task, prepare_task
from numbadrop.kernels.windows import (
    Axis,
    find_spread,
    unit,
    windows,
    windows_bytes,
    write_spread,
)

__all__ = [
    "BlockUpdate",
    "RegisteredRule",
    "Update",
    "element_rule",
    "rule_of",
    "update_block",
    "update_blocks",
]

_MOST_ARRAYS = 3
"""The weights and two slots."""
_SERIAL_BELOW = 20_000
"""Weights that one thread updates about as fast as a region of several starts."""


class RegisteredRule(NamedTuple):
    """A function that `element_rule` has declared, and how many slots it has."""

    function: Callable[..., None]
    slots: int


_rules: dict[type, RegisteredRule] = {}

Function = TypeVar("Function", bound=Callable[..., None])


def element_rule(hyper: type, slots: int) -> Callable[[Function], Function]:
    """Declare the decorated function as the rule that a class of hyper-parameters selects.

    Parameters
    ----------
    hyper : type
        A NamedTuple class whose fields are all floats.
    slots : int
        How many numbers the rule remembers for each weight: 0, 1 or 2.

    Returns
    -------
    callable
        A decorator for ``function(rule, w, slots, j, g)``, which changes the weight ``w[j]`` and
        its slots ``slots[0][j]``, ... for the gradient `g`, in code that Numba compiles. `j` may be
        an array of positions and `g` an array, when NumPy runs it. On some CPUs it is called for
        copies of weights that take no part, too, with any gradient: it must not raise an error,
        and what it does must not depend on anything else.

    Raises
    ------
    ValueError
        If `slots` is none of these, or the class has another rule already.

    Examples
    --------
    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> from numbadrop.kernels import element_rule, update_block
    >>> class SignRule(NamedTuple):
    ...     lr: float
    >>> @element_rule(SignRule, slots=0)
    ... def sign(rule, w, slots, j, g):
    ...     w[j] = w[j] - rule.lr * np.sign(g)
    >>> w = np.zeros(3)
    >>> update_block(SignRule(lr=0.5), w, np.empty((0, 3)), np.array([-7.0, 2.0]), cols=[0, 2])
    >>> w
    array([ 0.5,  0. , -0.5])
    """
    if slots not in (0, 1, 2):
        raise ValueError(f"slots must be 0, 1 or 2, got {slots}")

    def register(function: Function) -> Function:
        new = RegisteredRule(function, slots)
        if _rules.setdefault(hyper, new) != new:
            raise ValueError(f"hyper {hyper.__name__} has a rule already, only one is compiled")
        return function

    return register


def rule_of(hyper: type) -> RegisteredRule:
    """Return the rule that a class of hyper-parameters selects.

    Raises
    ------
    TypeError
        If none is declared.
    """
    registered = _rules.get(hyper)
    if registered is None:
        raise TypeError(f"no element rule is declared for {hyper.__name__}")
    return registered


def _update_element(rule, w, slots, j, g):
    """Apply the rule that the class of `rule` selects."""
    _rules[type(rule)].function(rule, w, slots, j, g)


# Not strict, so that a rule may have annotations.
@overload(_update_element, strict=False)
def _(rule, w, slots, j, g):
    return _rules[rule.instance_class].function


def _slot_rows(rule, alpha, address, stride, length):
    """Return the slots of one row as a tuple of arrays."""


@overload(_slot_rows)
def _(rule, alpha, address, stride, length):
    def none(rule, alpha, address, stride, length):
        return ()

    def one(rule, alpha, address, stride, length):
        return (carray(as_pointer(alpha, address), length),)

    def two(rule, alpha, address, stride, length):
        return (
            carray(as_pointer(alpha, address), length),
            carray(as_pointer(alpha, address + stride), length),
        )

    return (none, one, two)[_rules[rule.instance_class].slots]


@inner
def _write_back(element, copy, row, cols, count):
    """Bring the kept elements of a copy back to their row; both begin with the first of them."""
    base = unit(cols, 0)
    for j in range(count):
        behind = (unit(cols, j) - base) * bytes_of(element)
        store(row + behind, load(element, copy + behind))


@inlined
def _update_masked(rule, value, slots, slot_stride, g, active, cols, count, copy, copy_row):
    """Update the active weights of a row, under their mask."""
    element, span = rule[0], len(g)
    w = carray(as_pointer(element, value), span)
    s = _slot_rows(rule, element, slots, slot_stride, span)
    for j in range(span):
        if active[j]:
            _update_element(rule, w, s, j, g[j])


@inlined
def _update_copied(rule, value, slots, slot_stride, g, active, cols, count, copy, copy_row):
    """Update a copy of a row, and bring the active weights back."""
    element, span = rule[0], len(g)
    w = carray(as_pointer(element, copy), span)
    s = _slot_rows(rule, element, copy + copy_row, copy_row, span)
    copy_bytes(copy, value, span * bytes_of(element))
    for n in range(len(s)):
        copy_bytes(copy + (n + 1) * copy_row, slots + n * slot_stride, span * bytes_of(element))
    for j in range(span):
        _update_element(rule, w, s, j, g[j])
    _write_back(element, copy, value, cols, count)
    for n in range(len(s)):
        _write_back(element, copy + (n + 1) * copy_row, slots + n * slot_stride, cols, count)


# Only the one that will run is compiled.
_update_active = _update_masked if MACHINE.masked_stores else _update_copied


def _update_part(task, part, parts):
    # The momentum of a weight whose gradient stays zero decays to a denormal number and, rounded to
    # nearest, remains one for ever. A sixth of MNIST's momenta are such, and doubled a step's time:
    # they are flushed, once there is all memory that is needed.
    rule = first_of(task)
    element = rule[0]
    words = words_behind(task)
    value, slots, grad = load_index(words, 0), load_index(words, 1), load_index(words, 2)
    row_count, col_count, width = load_index(words, 3), load_index(words, 4), load_index(words, 5)
    rows = Axis(width * bytes_of(element), 0, load_index(words, 6))
    cols = Axis(bytes_of(element), width, load_index(words, 7))
    slot_stride, grad_row = array_stride(slots, 0), array_stride(grad, 0)
    value, slots, grad = array_data(value), array_data(slots), array_data(grad)

    first, last = share(row_count, parts, part), share(row_count, parts, part + 1)
    if cols.indices == 0:
        before = flush_denormals()
        for i in range(first, last):
            at = unit(rows, i) * rows.stride
            w = carray(as_pointer(element, value + at), width)
            s = _slot_rows(rule, element, slots + at, slot_stride, width)
            g = carray(as_pointer(element, grad + i * grad_row), width)
            for j in range(width):
                _update_element(rule, w, s, j, g[j])
        restore_denormals(before)
        return DONE

    base = unit(cols, 0)
    span = unit(cols, col_count - 1) - base + 1
    active = np.empty(span, np.uint8)
    clear_bytes(address_in(active), span)
    for j in range(col_count):
        active[unit(cols, j) - base] = 1
    wide = lanes(element)
    registers = (span + wide - 1) // wide
    spread_memory = np.empty(registers * MACHINE.vector_bytes, np.uint8)
    spread = address_in(spread_memory)
    clear_bytes(spread, registers * MACHINE.vector_bytes)
    g = carray(as_pointer(element, spread), span)
    table_memory = np.empty(windows_bytes(registers), np.uint8)
    table = windows(address_in(table_memory), registers)
    copy_row = registers * MACHINE.vector_bytes
    copy_memory = np.empty(0 if MACHINE.masked_stores else _MOST_ARRAYS * copy_row, np.uint8)
    copy = address_in(copy_memory)
    if col_count >= wide:
        find_spread(element, cols, np.int64(0), col_count, col_count, np.int64(0), table)
    before = flush_denormals()
    for i in range(first, last):
        source = grad + i * grad_row
        if col_count >= wide:
            write_spread(spread, source, registers, table)
        else:
            for j in range(col_count):
                g[unit(cols, j) - base] = load(element, source + j * bytes_of(element))
        at = unit(rows, i) * rows.stride + base * bytes_of(element)
        _update_active(
            rule, value + at, slots + at, slot_stride, g, active, cols, col_count, copy, copy_row
        )
    restore_denormals(before)
    keep_alive(copy_memory)
    keep_alive(spread_memory)
    keep_alive(table_memory)
    return DONE


class Update(NamedTuple):
    """A rule, what it changes, and the gradient of the block that it is for: all of it checked."""

    rule: Any
    value: Array
    slots: Array
    grad: Array
    rows: IndexSet | None
    cols: IndexSet | None
    task: Task | None = None
    """On the host, what does it."""


class BlockUpdate:
    """An optimizer's rule for one parameter; what stays as it is, is checked once.

    Parameters
    ----------
    hyper : type
        The class of the rule's hyper-parameters, see `element_rule`.
    value, slots
        As for `update_block`. They are changed by calls.

    Raises
    ------
    TypeError, ValueError
        As `update_block`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.optim.rules import SGDRule
    >>> w = np.zeros(3)
    >>> update = BlockUpdate(SGDRule, w, np.empty((0, 3)))
    >>> for lr, cols in ((1.0, [0, 1]), (0.5, [1, 2])):
    ...     update(SGDRule(lr, decay=0.0), np.ones(2), cols=cols)
    >>> w
    array([-1. , -1.5, -0.5])
    """

    __slots__ = ("_matrix", "hyper", "slots", "value")

    def __init__(self, hyper: Any, value: Array, slots: Array) -> None:
        registered = rule_of(hyper)
        for name, array in (("value", value), ("slots", slots)):
            check_is_array(name, array)
        if value.ndim == 0:
            raise ValueError("value must have at least one dimension, got shape ()")
        if slots.shape != (registered.slots, *value.shape):
            raise ValueError(
                f"slots must have shape {(registered.slots, *value.shape)}, got {slots.shape}"
            )
        check_dtype("value", value)
        _check_like("slots", slots, value)
        for name, array in (("value", value), ("slots", slots)):
            if is_host(array) and not (
                array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
            ):
                raise ValueError(f"{name} must be writeable, aligned and C-contiguous")
        check_apart("slots", slots, value=value)
        self.hyper, self.value, self.slots = hyper, value, slots
        self._matrix = math.prod(value.shape[:-1]), value.shape[-1]

    def __call__(self, rule: Any, grad: Array, rows: Units = None, cols: Units = None) -> None:
        """Apply `rule`, of the class `hyper`, to a block; see `update_block`."""
        update_blocks([self.check(rule, grad, rows, cols)])

    def check(self, rule: Any, grad: Array, rows: Units = None, cols: Units = None) -> Update:
        """Return what `rule` is to do to a block, for `update_blocks`; nothing is done yet."""
        value, slots = self.value, self.slots
        if type(rule) is not self.hyper:
            raise TypeError(f"rule must be a {self.hyper.__name__}, got {type(rule).__name__}")
        if type(grad) is not type(value) or grad.dtype is not value.dtype:
            check_is_array("grad", grad)
            _check_like("grad", grad, value)
        check_apart("grad", grad, value=value, slots=slots)
        row_count, col_count = self._matrix
        row_set, col_set = None, resolve("cols", cols, col_count)
        wanted: tuple[int, ...] = (count_units(col_set, col_count),)
        if value.ndim > 1:
            row_set = resolve("rows", rows, row_count)
            wanted = count_units(row_set, row_count), *wanted
        elif rows is not None:
            raise ValueError("rows must be None for a one-dimensional value")
        if grad.shape != wanted:
            raise ValueError(f"grad must have shape {wanted}, got {grad.shape}")
        task = None
        if is_host(value):
            for name, array in (("value", value), ("slots", slots)):
                if not array.flags.writeable:
                    raise ValueError(f"{name} is read-only")
            if grad.strides[-1] != grad.itemsize or not grad.flags.aligned:
                grad = grad.copy()
            # The rule's numbers enter in the dtype of the weights: in float64 they would double the
            # width of all sums.
            try:
                task = prepare_task(
                    _update_part, value.dtype, rule,
                    id(value), id(slots), id(grad), math.prod(wanted[:-1]), wanted[-1], col_count,
                    0 if row_set is None else row_set.address,
                    0 if col_set is None else col_set.address,
                )  # fmt: skip
            except struct.error:
                raise TypeError(f"rule must hold real numbers, got {rule}") from None
        if task is None or max(map(abs, rule)) > LARGEST_FACTOR:  # which few rules are
            for name, number in zip(rule._fields, rule, strict=True):
                check_real(name, number, value.dtype)
        return Update(rule, value, slots, grad, row_set, col_set, task)


def _check_like(name: str, array: Array, value: Array) -> None:
    check_same_memory(name, array, "value", value)
    if array.dtype != value.dtype:
        raise TypeError(f"{name} must, as value, be {value.dtype}, got {array.dtype}")


def update_block(
    rule: Any, value: Array, slots: Array, grad: Array, rows: Units = None, cols: Units = None
) -> None:
    """Apply an optimizer's rule to the active block of a parameter, in place.

    Parameters
    ----------
    rule : NamedTuple of float
        Hyper-parameters; their class selects what is computed, see `element_rule`.
    value : ndarray of float32 or float64, shape (..., n_out), C-contiguous
        The weights. All axes but the last count as one, that of the rows.
    slots : ndarray of the same dtype, shape (slots of the rule, *value.shape), C-contiguous
        What the rule remembers.
    grad : ndarray of the same dtype, shape (len(rows), len(cols)) or (len(cols),)
        The gradient of the block.
    rows, cols : IndexSet, array_like of int or bool, or None
        The active block; None means all. A one-dimensional `value` has `cols` alone.

    Raises
    ------
    TypeError
        If dtypes differ or no rule is declared for the class of `rule`.
    ValueError
        If a shape, a layout or an index set does not fit, or an array to change is read-only.
        Nothing has been changed then.

    Notes
    -----
    On x86, denormal numbers count as zero and results that would be denormal are zero.

    See Also
    --------
    BlockUpdate : The same for many steps of one parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.optim.rules import SGDRule
    >>> w, no_slots = np.ones((2, 3)), np.empty((0, 2, 3))
    >>> update_block(SGDRule(lr=0.5, decay=0.0), w, no_slots, np.array([[2.0, 4.0]]), [1], [0, 2])
    >>> w
    array([[ 1.,  1.,  1.],
           [ 0.,  1., -1.]])
    """
    BlockUpdate(type(rule), value, slots)(rule, grad, rows, cols)


def update_blocks(updates: Sequence[Update]) -> None:
    """Apply rules to blocks of several parameters: on a GPU together, else one after the other.

    Parameters
    ----------
    updates : sequence of Update
        From `BlockUpdate.check`. No array that one of them changes may be part of another.

    Raises
    ------
    ValueError
        If one value occurs twice on a GPU. Nothing has been changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.optim.rules import SGDRule
    >>> w, b, rule = np.ones((2, 2)), np.ones(2), SGDRule(lr=0.5, decay=0.0)
    >>> of_w, of_b = (BlockUpdate(SGDRule, p, np.empty((0, *p.shape))) for p in (w, b))
    >>> update_blocks([of_w.check(rule, np.ones((1, 1)), [0], [1]), of_b.check(rule, np.ones(2))])
    >>> w, b
    (array([[1. , 0.5],
           [1. , 1. ]]), array([0.5, 0.5]))
    """
    on_gpu = [update for update in updates if update.task is None]
    if len({id(update.value) for update in on_gpu}) < len(on_gpu):
        raise ValueError("updates on a GPU must be of different values, one occurs twice")
    for update in updates:
        if update.task is not None:
            update.task.run(parallel=update.grad.size >= _SERIAL_BELOW)
    if on_gpu:
        cuda().update_blocks(on_gpu)
