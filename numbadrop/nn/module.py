"""What all layers share: parameters, buffers, mode, randomness, state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.autograd import Variable
from numbadrop.index_set import IndexSet
from numbadrop.kernels.device import as_array, host_copy, is_host, to_device, to_host
from numbadrop.nn.activation import Activation, Input

__all__ = ["Buffer", "Module", "Parameter"]

Array = NDArray[Any]
Held = TypeVar("Held", "Parameter", "Buffer")


class Parameter(Variable):
    """The one mutable thing: an array that optimizers change in place.

    Parameters
    ----------
    value : array_like of float32 or float64
        Copied.

    Attributes
    ----------
    before_read : callable, optional
        Called with the index of a block by `refresh`. An optimizer that puts work off until
        weights are needed sets it.

    Examples
    --------
    >>> from numbadrop.optim import SGD
    >>> start = np.array([1.0, 2.0])
    >>> w = Parameter(start)
    >>> (w * w).backward(np.ones(2))
    >>> SGD([w], lr=0.25).step()
    >>> w.value, start
    (array([0.5, 1. ]), array([1., 2.]))
    """

    __slots__ = ("before_read",)

    def __init__(self, value: ArrayLike) -> None:
        super().__init__(_owned(value), requires_grad=True)
        self.before_read: Callable[..., None] | None = None

    def refresh(self, *index: IndexSet | None) -> None:
        """Bring a block of the value up to date; call it before you read the block.

        Parameters
        ----------
        *index : IndexSet or None
            For each axis, the units that will be read; None: all. Without any, the whole value.
        """
        if self.before_read is not None:
            self.before_read(*index)


class Buffer:
    """An array that a layer itself changes in place: state that is saved, but not trained.

    Parameters
    ----------
    value : array_like of float32 or float64
        Copied.

    Examples
    --------
    >>> layer = Module()
    >>> layer.shift, layer.mean = Parameter(np.zeros(2)), Buffer(np.zeros(2))
    >>> len(layer.parameters()), list(layer.state_dict())
    (1, ['shift', 'mean'])
    """

    __slots__ = ("value",)

    def __init__(self, value: ArrayLike) -> None:
        self.value: Array = _owned(value)


def _owned(value: ArrayLike) -> Array:
    given = as_array(value)
    copy = np.array(given, order="C") if is_host(given) else given.copy()
    if copy.dtype not in (np.float32, np.float64):
        raise TypeError(f"value must be float32 or float64, got {copy.dtype}")
    return copy


class Module:
    """A layer, or a net of layers.

    A subclass defines ``__call__(x, units=None)``, which takes an ndarray, a Variable or an
    Activation and returns an Activation. Parameters, buffers and modules that are attributes are
    found, not those in a list, tuple or dict: `Sequential` holds several. Before it reads a
    parameter's value, it says which part with `Parameter.refresh`.

    Attributes
    ----------
    training : bool
        Whether dropout drops, and batch normalization uses the moments of the batch; see `train`
        and `eval`.
    unitwise : bool
        Whether output unit k depends on input unit k alone. Says of a class that a dropout layer
        behind it may as well come before it.

    Examples
    --------
    >>> class Square(Module):
    ...     unitwise = True
    ...
    ...     def __call__(self, x, units=None):
    ...         x = Activation.of(x).take(units)
    ...         return Activation(x.values * x.values, x.units)
    >>> Square()(np.array([[1.0, 2.0, 3.0]]), units=IndexSet([0, 2], 3)).value
    array([[1., 9.]])
    """

    training: bool = True
    unitwise: bool = False
    _rng: np.random.Generator | None = None

    def __call__(self, x: Input, units: IndexSet | None = None) -> Activation:
        """Apply the layer.

        Parameters
        ----------
        x : ndarray, Variable or Activation, shape (batch, ..., units)
        units : IndexSet, optional
            The output units that are wanted; no other is computed. None: all that there are.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def out_units(self, units: IndexSet | None) -> IndexSet | None:
        """Return which units can be asked for of an input with `units`.

        `Sequential` draws the pattern of the next `BatchwiseDropout` among them before the layer
        runs. None stands for a set that is known only once it has run; then nothing is drawn ahead.
        """
        return units if self.unitwise else None

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Set the layer's own parameters and buffers to initial values."""

    @property
    def rng(self) -> np.random.Generator:
        """The source of all randomness, one for the whole net after `seed`."""
        if self._rng is None:
            self._rng = np.random.default_rng()
        return self._rng

    def seed(self, seed: int | np.random.Generator) -> Self:
        """Begin anew: draw all parameters, reset all buffers, drive all dropout from one generator.

        Parameters
        ----------
        seed : int or numpy.random.Generator

        Returns
        -------
        Module
            This module.
        """
        rng = np.random.default_rng(seed)
        for parameter in self.parameters():
            parameter.refresh()
            parameter.version += 1
        for module in self.modules():
            module._rng = rng
            module.reset_parameters(rng)
        return self

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules that are attributes of this one, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> list[Module]:
        """Return this module and all modules inside it, each once."""
        return [module for _, module in self._named_modules("", set())]

    def _named_modules(self, prefix: str, seen: set[Module]) -> Iterator[tuple[str, Module]]:
        """Yield each module once, with the first path that leads to it."""
        if self not in seen:
            seen.add(self)
            yield prefix, self
            for name, child in self.children():
                yield from child._named_modules(f"{prefix}{name}.", seen)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters, each once, with the path of attributes that leads to them."""
        return self._named(Parameter)

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """Yield all buffers, each once, with the path of attributes that leads to them."""
        return self._named(Buffer)

    def _named(self, kind: type[Held]) -> Iterator[tuple[str, Held]]:
        seen = set()
        for prefix, module in self._named_modules("", set()):
            for name, value in vars(module).items():
                if isinstance(value, kind) and value not in seen:
                    seen.add(value)
                    yield prefix + name, value

    def parameters(self) -> list[Parameter]:
        """Return all parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def train(self, mode: bool = True) -> Self:
        """Set `training`, in this module and all inside it."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Let the whole net answer: dropout rests, batch normalization uses running statistics."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    @property
    def device(self) -> str:
        """Where the parameters are, "cpu" or "cuda"; "cpu" if there are none."""
        parameters = self.parameters()
        return "cuda" if parameters and not is_host(parameters[0].value) else "cpu"

    def to(self, device: str) -> Self:
        """Move all parameters and buffers to the memory of the host, or of a GPU.

        Gradients are forgotten. The slots of an optimizer follow their parameter at its next step.

        Parameters
        ----------
        device : {"cpu", "cuda"}

        Returns
        -------
        Module
            This module.

        Raises
        ------
        MissingExtraError, DeviceError, DeviceMemoryError
            If numba-cuda, a GPU with its driver, or memory on it is missing. Nothing has been
            moved then.
        ValueError
            If `device` is neither, or an optimizer with inactive="catch_up" holds a parameter
            that would leave the host.
        """
        if device not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
        for name, parameter in self.named_parameters():
            if device == "cuda" and parameter.before_read is not None:
                raise ValueError(
                    f"{name} is held by an optimizer with inactive='catch_up', which works on the "
                    "host alone: make one with inactive='frozen' before .to('cuda')"
                )
        # All are sent before one is replaced, so that a memory that is full changes nothing.
        move = to_host if device == "cpu" else to_device
        moved = {name: move(value) for name, value in self._state().items()}
        for name, holder in self._holders():
            holder.value = moved[name]
        self.zero_grad()
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return a copy, on the host, of each parameter's and buffer's value under its name."""
        return {name: host_copy(value) for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Write the values of `state` into the parameters and buffers.

        Parameters
        ----------
        state : mapping of str to ndarray
            As from `state_dict`, wherever the module is. Everything is checked before anything is
            written.

        Raises
        ------
        KeyError
            If a name is missing or unexpected.
        ValueError
            If a shape or dtype is not that of the parameter or buffer, or that is read-only.
        """
        own = self._state()
        check_state(own, state)
        for parameter in self.parameters():
            parameter.version += 1
        for name, value in own.items():
            value[...] = state[name]

    def _state(self) -> dict[str, Array]:
        """Return all values under their names, brought up to date: themselves, not copies."""
        for parameter in self.parameters():
            parameter.refresh()
        return {name: holder.value for name, holder in self._holders()}

    def _holders(self) -> list[tuple[str, Parameter | Buffer]]:
        return [*self.named_parameters(), *self.named_buffers()]


def check_state(wanted: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Check that `state` has the names of `wanted`, each with the same shape and dtype."""
    for problem, names in (
        ("lacks", [name for name in wanted if name not in state]),
        ("has the unexpected", [name for name in state if name not in wanted]),
    ):
        if names:
            raise KeyError(f"state {problem} {', '.join(names)}")
    for name in wanted:
        own, found = as_array(wanted[name]), as_array(state[name])
        if is_host(own) and not own.flags.writeable:
            raise ValueError(f"{name} is read-only, state[{name!r}] cannot be written into it")
        if found.shape != own.shape or found.dtype != own.dtype:
            raise ValueError(
                f"state[{name!r}] must be {own.dtype} of shape {own.shape}, "
                f"got {found.dtype} of shape {found.shape}"
            )
