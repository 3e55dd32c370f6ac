"""Variables, primitives with one gradient rule for each argument, and backward.

A primitive is a NumPy function. Calling it with a variable that requires a gradient leaves a
record; `Variable.backward` walks the records in the reverse order of their making and asks, of
each, only for the gradients that somebody needs. The idea is that of HIPS/autograd.

Gradients are handed on without copies, so that two variables may hold the same array: read them,
and replace them, but never write into them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from heapq import heappop, heappush
from itertools import count
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.autograd.block import Block

__all__ = [
    "Primitive",
    "Variable",
    "add",
    "multiply",
    "negative",
    "no_grad",
    "primitive",
    "subtract",
]

Array = NDArray[Any]
Gradient = Block | Array
Rule = Callable[..., Any]


class _Mode(threading.local):
    recording = True


_mode = _Mode()


@contextmanager
def no_grad() -> Iterator[None]:
    """Leave no records in this thread: a forward pass alone costs neither time nor memory for them.

    Examples
    --------
    >>> x = Variable(2.0, requires_grad=True)
    >>> with no_grad():
    ...     y = x * x
    >>> y.requires_grad
    False
    """
    before = _mode.recording
    _mode.recording = False
    try:
        yield
    finally:
        _mode.recording = before


_numbers = count()


class _Record:
    """That a primitive made `out` from `arguments`, some of which are the values of `sources`."""

    __slots__ = ("arguments", "number", "out", "primitive", "sources")

    def __init__(
        self,
        made_by: Primitive,
        arguments: list[Any],
        out: Array,
        sources: list[tuple[int, Variable, int]],
    ) -> None:
        self.number = next(_numbers)
        self.primitive = made_by
        self.arguments = arguments
        self.out: Array | None = out
        self.sources: list[tuple[int, Variable, int]] | None = sources

    def free(self) -> None:
        self.arguments, self.out, self.sources = [], None, None


class Variable:
    """An array that the tape can follow.

    Parameters
    ----------
    value : array_like
        An array of another class, for which NumPy's functions run elsewhere (NEP 18), stays one.
    requires_grad : bool
        Whether `backward` shall leave the gradient with respect to this variable in `grad`.

    Attributes
    ----------
    value : ndarray
        Not to be written into between the forward and the backward pass of what was made from it,
        or made it: the gradients would be those of neither value.
    grad : None, ndarray or Block
        Sum of the gradients of all backward passes since it was last set to None.
    requires_grad : bool
    version : int
        How often the value was changed in place. Whoever does that counts it here, so that a
        backward pass does not take the new value for the one that the forward pass saw.

    Raises
    ------
    TypeError
        If a gradient is asked for and the elements are not floats.

    Examples
    --------
    >>> x = Variable([1.0, 2.0], requires_grad=True)
    >>> (x * x - 3.0 * x).backward(np.ones(2))
    >>> x.grad
    array([-1.,  1.])
    """

    __slots__ = ("_record", "grad", "requires_grad", "value", "version")

    # NumPy leaves `array * variable` to the variable.
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise TypeError(f"a {type(self).__name__} is no array, its .value is")

    def __init__(self, value: ArrayLike, requires_grad: bool = False) -> None:
        self.value: Array = _as_array(value)
        if requires_grad and self.value.dtype.kind != "f":
            raise TypeError(f"value must hold floats to have a gradient, got {self.value.dtype}")
        self.grad: Gradient | None = None
        self.requires_grad = requires_grad
        self.version = 0
        self._record: _Record | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements of the value."""
        return self.value.dtype

    def backward(self, gradient: ArrayLike | None = None) -> None:
        """Add to `grad` of each leaf that requires it the gradient of this variable.

        Parameters
        ----------
        gradient : array_like, optional
            Gradient of the quantity of interest with respect to this variable, of its shape and
            dtype. May be left out where this variable has one element; it is 1 then.

        Raises
        ------
        RuntimeError
            If nothing that this variable was made from requires a gradient, if a backward pass
            has already used up the records, or if an optimizer's step has changed since what they
            are of.
        ValueError, TypeError
            If `gradient` is missing or does not fit, or if a gradient rule returns something of
            another shape or dtype than its argument.
        """
        if not self.requires_grad:
            raise RuntimeError("nothing that this variable was made from requires a gradient")
        if gradient is None:
            if self.value.size != 1:
                raise ValueError(f"gradient must be given for a value of shape {self.shape}")
            gradient = np.ones_like(self.value)
        _walk(self, _fitting(gradient, self.value, "gradient"))

    def __float__(self) -> float:
        return float(self.value.item())

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self.value!r}{suffix})"

    def __add__(self, other: Any) -> Variable:
        return _operate(add, self, other)

    def __radd__(self, other: Any) -> Variable:
        return _operate(add, other, self)

    def __sub__(self, other: Any) -> Variable:
        return _operate(subtract, self, other)

    def __rsub__(self, other: Any) -> Variable:
        return _operate(subtract, other, self)

    def __mul__(self, other: Any) -> Variable:
        return _operate(multiply, self, other)

    def __rmul__(self, other: Any) -> Variable:
        return _operate(multiply, other, self)

    def __neg__(self) -> Variable:
        return negative(self)


def _operate(operation: Primitive, a: Any, b: Any) -> Variable:
    """Return ``operation(a, b)``, or leave it to an operand that has operators of its own."""
    for operand in (a, b):
        own = getattr(operand, "__array_ufunc__", True) is None
        if own and not isinstance(operand, Variable):
            return cast(Variable, NotImplemented)
    return operation(a, b)


def _as_array(value: Any) -> Array:
    """Return an array of NumPy, or the one of another class that `value` is."""
    if type(value) is np.ndarray:
        return value
    if hasattr(value, "__array_function__") and not isinstance(value, np.ndarray):
        other: Array = value
        return other
    return np.asarray(value)


def _fitting(gradient: Any, value: Array, name: str, *parts: str) -> Gradient:
    """Return `gradient` if it has the shape and dtype of `value`; `name` is for the error."""
    checked: Gradient = gradient if isinstance(gradient, Block) else _as_array(gradient)
    if checked.shape != value.shape:
        raise ValueError(
            f"{name.format(*parts)} must have shape {value.shape}, got {checked.shape}"
        )
    if checked.dtype != value.dtype:
        raise TypeError(f"{name.format(*parts)} must be {value.dtype}, got {checked.dtype}")
    return checked


def _walk(start: Variable, gradient: Gradient) -> None:
    # A record is ready when all records made after it are done: nothing that is still to come
    # can add to its gradient.
    ready: list[tuple[int, _Record]] = []
    gradients: dict[int, Array] = {}

    def hand(variable: Variable, gradient: Gradient) -> None:
        record = variable._record
        if record is None:
            # Never in place: the array may have been handed to others too.
            variable.grad = gradient if variable.grad is None else variable.grad + gradient
            return
        if record.sources is None:
            raise RuntimeError(
                "a backward pass has already freed the records that lead here: "
                "repeat the forward pass"
            )
        if isinstance(gradient, Block):
            gradient = gradient.dense()
        if record.number in gradients:
            gradients[record.number] = gradients[record.number] + gradient
        else:
            gradients[record.number] = gradient
            heappush(ready, (-record.number, record))

    hand(start, gradient)
    while ready:
        number, record = heappop(ready)
        out_gradient = gradients.pop(-number)
        made_by, arguments, sources = record.primitive, record.arguments, record.sources or ()
        for position, source, version in sources:
            if source.version != version:
                raise RuntimeError(
                    f"argument {made_by.names[position]!r} of {made_by.__name__} has been changed "
                    "since the forward pass, as by an optimizer's step: forget the gradients and "
                    "repeat the forward pass"
                )
        prepared = made_by.prepare_step(out_gradient, record.out, *arguments)
        for position, source, _ in sources:
            result = made_by.rules[position](prepared, record.out, *arguments)
            name = made_by.names[position]
            of = "gradient of {} for argument {!r}"
            hand(source, _fitting(result, arguments[position], of, made_by.__name__, name))
        record.free()


class Primitive:
    """A NumPy function that the tape can follow; see `primitive`.

    Examples
    --------
    >>> @primitive
    ... def power(x, n):
    ...     return x**n
    >>> @power.gradient("x")
    ... def _(g, out, x, n):
    ...     return g * n * x ** (n - 1)
    >>> x = Variable(2.0, requires_grad=True)
    >>> power(x, n=3).backward()
    >>> x.grad
    array(12.)
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        update_wrapper(self, function)
        self.function = function
        self.signature = inspect.signature(function)
        self.names = list(self.signature.parameters)
        self.rules: dict[int, Rule] = {}
        self.prepare_step: Rule = _unprepared
        for parameter in self.signature.parameters.values():
            if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                raise TypeError(
                    f"a primitive takes named arguments only, {self.__name__} has {parameter}"
                )

    __name__: str

    def __call__(self, *arguments: Any, **named: Any) -> Variable:
        """Return the function's result; any array argument may be a Variable."""
        if named or len(arguments) != len(self.names):
            bound = self.signature.bind(*arguments, **named)
            bound.apply_defaults()
            arguments = bound.args
        values: list[Any] = []
        sources: list[tuple[int, Variable, int]] = []
        for position, argument in enumerate(arguments):
            if not isinstance(argument, Variable):
                values.append(argument)
                continue
            values.append(argument.value)
            if argument.requires_grad and _mode.recording:
                if position not in self.rules:
                    raise TypeError(
                        f"{self.__name__} has no gradient rule for argument "
                        f"{self.names[position]!r}, which requires a gradient"
                    )
                sources.append((position, argument, argument.version))
        result = Variable(self.function(*values))
        if sources:
            result.requires_grad = True
            result._record = _Record(self, values, result.value, sources)
        return result

    def gradient(self, name: str) -> Callable[[Rule], Rule]:
        """Declare the decorated function as the gradient rule for the argument `name`.

        The rule is called with the gradient of the output, the output, and all arguments of the
        forward pass, and returns an ndarray or a Block of the argument's shape and dtype. It must
        not write into anything it gets.
        """
        if name not in self.names:
            raise ValueError(f"{self.__name__} has no argument {name!r}, it has {self.names}")

        def register(rule: Rule) -> Rule:
            self.rules[self.names.index(name)] = rule
            return rule

        return register

    def prepare(self, step: Rule) -> Rule:
        """Declare the decorated function as a step that all gradient rules share.

        It is called once in a backward pass, with what a rule is called with. The rules get what
        it returns, whatever that is, in place of the gradient of the output.
        """
        self.prepare_step = step
        return step


def _unprepared(g: Array, out: Array, *arguments: Any) -> Array:
    return g


def primitive(function: Callable[..., Any]) -> Primitive:
    """Make a differentiable operation of a NumPy function.

    The function sees plain arrays, and so do the rules, which stand right under it.

    Examples
    --------
    >>> @primitive
    ... def square(x):
    ...     return x * x
    >>> @square.gradient("x")
    ... def _(g, out, x):
    ...     return 2 * g * x
    >>> x = Variable(3.0, requires_grad=True)
    >>> square(x).backward()
    >>> x.grad
    array(6.)
    """
    return Primitive(function)


def _as_of(argument: Array, g: Array) -> Array:
    """Undo broadcasting and promotion: sum over the axes that were repeated, cast to the dtype."""
    shape = argument.shape
    if g.shape != shape:
        g = g.sum(axis=tuple(range(g.ndim - len(shape))))
        repeated = tuple(i for i, n in enumerate(shape) if n != g.shape[i])
        g = _as_array(g.sum(axis=repeated, keepdims=True))
    return g if g.dtype == argument.dtype else g.astype(argument.dtype)


@primitive
def add(a: Array, b: Array) -> Array:
    """Return a + b, with NumPy's broadcasting.

    Examples
    --------
    >>> b = Variable([1.0, 2.0], requires_grad=True)
    >>> y = add(np.array([[10.0], [20.0], [30.0]]), b)
    >>> y.backward(np.ones((3, 2)))
    >>> b.grad
    array([3., 3.])
    """
    return a + b


@add.gradient("a")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(a, g)


@add.gradient("b")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(b, g)


@primitive
def subtract(a: Array, b: Array) -> Array:
    """Return a - b, with NumPy's broadcasting.

    Examples
    --------
    >>> a, b = Variable(5.0, requires_grad=True), Variable(3.0, requires_grad=True)
    >>> subtract(a, b).backward()
    >>> a.grad, b.grad
    (array(1.), array(-1.))
    """
    return a - b


@subtract.gradient("a")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(a, g)


@subtract.gradient("b")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(b, -g)


@primitive
def multiply(a: Array, b: Array) -> Array:
    """Return a * b elementwise, with NumPy's broadcasting.

    Examples
    --------
    >>> a, b = Variable(5.0, requires_grad=True), Variable(3.0, requires_grad=True)
    >>> multiply(a, b).backward()
    >>> a.grad, b.grad
    (array(3.), array(5.))
    """
    return a * b


@multiply.gradient("a")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(a, g * b)


@multiply.gradient("b")
def _(g: Array, out: Array, a: Array, b: Array) -> Array:
    return _as_of(b, g * a)


@primitive
def negative(a: Array) -> Array:
    """Return -a.

    Examples
    --------
    >>> a = Variable([1.0, -2.0], requires_grad=True)
    >>> negative(a).value
    array([-1.,  2.])
    """
    return -a


@negative.gradient("a")
def _(g: Array, out: Array, a: Array) -> Array:
    return -g
