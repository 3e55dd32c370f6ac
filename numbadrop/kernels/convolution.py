"""Gathered convolutions: forward, input gradient and weight gradient, from and to kept channels.

Images are compact (batch, height, width, channels): they hold the kept channels alone, channels
last. Weights are (kernel height, kernel width, in, out), and other channels of theirs are not read.
What runs is the product of `patches`, or for most kernels of 3 x 3 to 7 x 7 those of `winograd`;
these doors say where the taps of the kernel lie. Groups are not here: a group is an index set of
its own, and depthwise convolution leaves a register tile nothing to share.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbadrop.address import address_of
from numbadrop.index_set import IndexSet
from numbadrop.kernels import winograd
from numbadrop.kernels.arrays import (
    Array,
    Pair,
    Units,
    as_dense,
    check_alike,
    check_dtype,
    check_images,
    check_is_array,
    check_out,
    check_pair,
    check_real,
    check_rectifier,
    check_units,
    count_units,
    resolve,
)
from numbadrop.kernels.device import as_array, cuda, empty, is_host
from numbadrop.kernels.direct import convolve_part, correlate_part
from numbadrop.kernels.epilogue import PLAIN, Epilogue
from numbadrop.kernels.geometry import Geometry, Taps, check_geometry, out_size
from numbadrop.kernels.stretches import stretches
from numbadrop.kernels.task import run_task
from numbadrop.kernels.update import element_rule, update_block

__all__ = [
    "conv2d_at",
    "gathered_conv2d",
    "gathered_conv2d_t",
    "scatter_conv2d",
]

_SERIAL_BELOW = 200_000
_MOST_FRAME_BYTES = 1 << 30
"""Most bytes of a frame of zeros around what the patches of one line of positions cover."""


class _Factor(NamedTuple):
    factor: float


@element_rule(_Factor, slots=0)
def _add(rule, w, slots, j, g):
    w[j] += rule.factor * g


def _check_frame(rows: int, pixels: int, pixel_bytes: int) -> None:
    """Refuse a frame of zeros, each thread has one, that hardly any machine has memory for."""
    frame = rows * pixels * pixel_bytes
    if frame > _MOST_FRAME_BYTES:
        raise ValueError(
            f"padding or dilation is too large: with the zeros around the images, the patches of "
            f"one line cover {rows} x {pixels} pixels, {frame} bytes of at most {_MOST_FRAME_BYTES}"
        )


def _check_forward_frame(axes: tuple[Geometry, Geometry], images: Array) -> None:
    down, along = axes
    if down.padding or along.padding:
        rows, pixels = down.dilation * (down.kernel - 1) + 1, images.shape[2] + 2 * along.padding
        _check_frame(rows, pixels, images.shape[3] * images.itemsize)


def _check_weights(w: ArrayLike) -> Array:
    array = as_array(w)
    if array.ndim != 4 or 0 in array.shape[:2]:
        raise ValueError(
            f"w must have shape (kernel height, kernel width, in, out), got {array.shape}"
        )
    check_dtype("w", array)
    return array


def _channels(
    in_channels: Units, out_channels: Units, n_in: int, n_out: int
) -> tuple[IndexSet | None, IndexSet | None]:
    return (
        resolve("in_channels", in_channels, n_in),
        resolve("out_channels", out_channels, n_out),
    )


def _indices(units: IndexSet | None, size: int) -> NDArray[np.int64]:
    return np.arange(size) if units is None else units.indices


class _Runs(NamedTuple):
    """The runs of taps that patches consist of."""

    geometry: tuple[int, ...]
    """Of a `patches.Patches`, what stands between the image's sizes and the address of the runs."""
    places: NDArray[np.int64]
    """How far each run begins below and right of the first tap, shape (runs, 2)."""
    order: NDArray[np.int64]
    """Numbers of the kernel's taps, row by row, in the order of the depth, shape (taps, 1)."""


@lru_cache(maxsize=256)  # a net asks for the same ones in every step
def _forward(axis: Geometry, size: int) -> Taps:
    return axis.forward(size)


@lru_cache(maxsize=64)  # the same
def _runs(down: Taps, along: Taps, kernel_width: int, merge: bool) -> _Runs:
    """Return the runs of taps; those of a row that lie side by side are one run if `merge`."""
    rows = [(place - down.first, tap) for place, tap in down.places]
    cols = [(place - along.first, tap) for place, tap in along.places]
    order = np.array([i * kernel_width + j for _, i in rows for _, j in cols], np.int64)
    order = order.reshape(-1, 1)
    run_pixels = 1
    if merge and cols and along.reach == len(cols) - 1:
        run_pixels, cols = len(cols), cols[:1]
    places = np.array([(y, x) for y, _ in rows for x, _ in cols], np.int64).reshape(-1, 2)
    places.flags.writeable = order.flags.writeable = False
    geometry = (
        down.number, along.number, down.step, along.step, down.first, along.first,
        down.reach, along.reach, len(places), run_pixels,
    )  # fmt: skip
    return _Runs(geometry, places, order)


def _patches(images: Array, runs: _Runs) -> tuple[int, ...]:
    """Return the words of a `patches.Patches`; `runs` must live until the kernel has run."""
    return address_of(images), *images.shape, *runs.geometry, address_of(runs.places)


def _convolve(
    images: Array, down: Taps, along: Taps, w: Array, transposed: bool,
    depth_units: IndexSet | None, col_units: IndexSet | None, out: Array,
    epilogue: Epilogue = PLAIN, bias: Array | None = None,
) -> None:  # fmt: skip
    """Compute the elements of `out` that `down` and `along` name, all columns of them."""
    kernel_height, kernel_width, n_in, n_out = w.shape
    runs = _runs(down, along, kernel_width, merge=True)
    patches = _patches(images, runs)
    depth_size, depth_step = (n_out, n_in * n_out) if transposed else (n_in, n_in)
    units = _indices(depth_units, depth_size)
    depth = (runs.order * depth_step + units).ravel()
    # Not those that NumPy says: of an axis of length 1 they may be anything.
    row_stride, col_stride, cols = n_out * w.itemsize, w.itemsize, n_out
    if transposed:
        row_stride, col_stride, cols = col_stride, row_stride, n_in
    # Along the depth lie the weights of one tap behind those of another. Of the last tap there
    # are no more than its own.
    depth_axis = (kernel_height * kernel_width - 1) * depth_step + depth_size
    count = out.shape[3]
    image, line, pixel, _ = out.strides
    first = address_of(out) + down.target * line + along.target * pixel
    places = first, image, down.target_step * line, along.target_step * pixel
    weights = (
        address_of(w),
        row_stride, depth_axis, address_of(depth),
        col_stride, cols, 0 if col_units is None else col_units.address,
    )  # fmt: skip
    parallel = len(images) * down.number * along.number * len(depth) * count >= _SERIAL_BELOW
    sizes = len(units), count, w.itemsize
    if winograd.pays(len(images), down, along, *sizes):
        transformed = empty((winograd.matrices_elements(down, along, *sizes),), w)
        run_task(
            winograd.transform_part, w.dtype, _Factor(1.0),
            len(units), count, down.reach, along.reach, *weights, address_of(transformed),
            parallel=parallel,
        )  # fmt: skip
        if bias is not None and col_units is not None:
            bias = bias[col_units.indices]
        run_task(
            winograd.convolve_part, out.dtype, epilogue,
            *patches, 0 if bias is None else address_of(bias), count,
            address_of(transformed), *places,
            parallel=parallel,
        )  # fmt: skip
        return
    run_task(
        convolve_part, out.dtype, epilogue,
        *patches, 0 if bias is None else address_of(bias), count, *weights, *places,
        parallel=parallel,
    )  # fmt: skip


def _dense_pixels(out: Array) -> Array:
    """Return `out`, or a new array if its channels do not lie side by side."""
    return out if out.strides[3] == out.itemsize else np.empty_like(out, order="C")


def gathered_conv2d(
    x: ArrayLike,
    w: ArrayLike,
    in_channels: Units = None,
    out_channels: Units = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    bias: ArrayLike | None = None,
    slope: float = 1.0,
    scale: float = 1.0,
    out: Array | None = None,
) -> Array:
    """Convolve images of the kept channels to the wanted channels (a cross-correlation).

    ``v[b, y, x, o] = bias[out_channels[o]] + sum_ijc image[b, y stride + i dilation - padding,
    x stride + j dilation - padding, c] w[i, j, in_channels[c], out_channels[o]]``, with zeros
    around the image, and of that ``scale rectify(v)``, where ``rectify(v) = v if v > 0 else slope
    v`` (Graham et al. 2015, arXiv:1502.02478, section 4).

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, height, width, len(in_channels))
        Copied unless it is C-contiguous.
    w : array_like of the same dtype, shape (kernel height, kernel width, n_in, n_out)
        The same.
    in_channels, out_channels : IndexSet, array_like of int or bool, or None
        The channels that take part: ascending and unique, or a boolean mask; None means all.
    stride, padding, dilation : int or pair of int
        For height and width.
    bias : array_like of the same dtype, shape (n_out,), optional
    slope, scale : float
        As for `gathered_linear`.
    out : ndarray of the same dtype, shape (batch, height', width', len(out_channels)), optional
        Written to, and returned. It must not overlap an input.

    Returns
    -------
    ndarray, shape (batch, height', width', len(out_channels))
        Sizes as `conv2d_size` says.

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or dtypes differ, or a number is not an integer.
    ValueError
        If a shape does not fit, the geometry is impossible, an index set is empty, unsorted,
        repeated or out of range, or `out` is read-only or overlaps an input. Nothing has been
        written then.

    Notes
    -----
    On the CPU, kernels of 3, 5 or 7 by 3, 5 or 7 with stride and dilation 1, between 17 channels or
    more (12 without a 3), are computed by Winograd's algorithm, with about half of the
    multiplications, unless there are few pixels (Lavin and Gray 2015, arXiv:1509.09308); so are the
    gradients. A result that sees an infinity may then be NaN, and in the gradient of the weights
    one that sees none, too.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import gathered_conv2d
    >>> image, w = np.ones((1, 3, 3, 1)), np.ones((3, 3, 2, 2))
    >>> gathered_conv2d(image, w, [1], [0], padding=1)[0, :, :, 0]
    array([[4., 6., 4.],
           [6., 9., 6.],
           [4., 6., 4.]])
    """
    x, w = check_images("x", x), _check_weights(w)
    check_alike("x", x, "w", w)
    axes = check_geometry(w.shape[:2], stride, padding, dilation)
    n_in, n_out = w.shape[2:]
    ins, outs = _channels(in_channels, out_channels, n_in, n_out)
    check_units("x", 3, x.shape[3], "in_channels", count_units(ins, n_in))
    slope, scale = check_rectifier(slope, scale)
    shape = (len(x), *out_size(axes, x.shape[1:3]), count_units(outs, n_out))
    inputs = {"x": x, "w": w}
    if bias is not None:
        inputs["bias"] = bias = as_array(bias)
        check_alike("bias", bias, "w", w)
        if bias.shape != (n_out,):
            raise ValueError(f"bias must have shape {(n_out,)}, got {bias.shape}")
        bias = as_dense(bias)
    if out is None:
        out = empty(shape, w)
    else:
        check_out(out, shape, w.dtype, tuple(inputs), *inputs.values())
    if not is_host(w):
        return cuda().gathered_conv2d(
            x, w, ins, outs, axes=axes, bias=bias, slope=slope, scale=scale, out=out
        )
    _check_forward_frame(axes, x)
    target = _dense_pixels(out)
    down, along = map(_forward, axes, x.shape[1:3])
    epilogue = Epilogue(slope, scale)
    _convolve(as_dense(x), down, along, as_dense(w), False, ins, outs, target, epilogue, bias)
    if target is not out:
        out[...] = target
    return out


def gathered_conv2d_t(
    g: ArrayLike,
    w: ArrayLike,
    in_channels: Units = None,
    out_channels: Units = None,
    *,
    input_size: tuple[int, int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    out: Array | None = None,
) -> Array:
    """Return the gradient of the images of `gathered_conv2d`.

    ``dx[b, y, x, c]`` is the sum of ``g[b, y', x', o] w[i, j, in_channels[c], out_channels[o]]``
    over all outputs and taps that meet at the pixel.

    Parameters
    ----------
    g : array_like of float32 or float64, shape (batch, height', width', len(out_channels))
    w, in_channels, out_channels, stride, padding, dilation
        As for `gathered_conv2d`.
    input_size : tuple of int
        Height and width of the images: several sizes give the same `g`.
    out : ndarray of the same dtype, shape (batch, *input_size, len(in_channels)), optional

    Returns
    -------
    ndarray, shape (batch, *input_size, len(in_channels))

    Raises
    ------
    TypeError, ValueError
        As for `gathered_conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import gathered_conv2d_t
    >>> g, w = np.ones((1, 1, 2, 1)), np.arange(3.0).reshape(1, 3, 1, 1)
    >>> gathered_conv2d_t(g, w, input_size=(1, 4))[0, 0, :, 0]
    array([0., 1., 3., 2.])
    """
    g, w = check_images("g", g), _check_weights(w)
    check_alike("g", g, "w", w)
    axes = check_geometry(w.shape[:2], stride, padding, dilation)
    n_in, n_out = w.shape[2:]
    ins, outs = _channels(in_channels, out_channels, n_in, n_out)
    check_units("g", 3, g.shape[3], "out_channels", count_units(outs, n_out))
    size = check_pair("input_size", input_size, 0)
    _check_gradient_size(g, out_size(axes, size))
    shape = (len(g), *size, count_units(ins, n_in))
    if out is None:
        out = empty(shape, w)
    else:
        check_out(out, shape, w.dtype, ("g", "w"), g, w)
    if not is_host(w):
        return cuda().gathered_conv2d_t(g, w, ins, outs, axes=axes, out=out)
    # Inputs that no tap reaches, most of them where the stride is long, are zeros.
    reached = [
        [taps for taps in axis.backward(length) if taps.places]
        for axis, length in zip(axes, size, strict=True)
    ]
    phases = list(product(*reached))
    for down, along in phases:
        if down.leaves(g.shape[1]) or along.leaves(g.shape[2]):
            _check_frame(down.reach + 1, along.span, g.shape[3] * g.itemsize)
    g, w = as_dense(g), as_dense(w)
    target = _dense_pixels(out)
    if [sum(taps.number for taps in of_axis) for of_axis in reached] != list(size):
        target[...] = 0
    for down, along in phases:
        _convolve(g, down, along, w, True, outs, ins, target)
    if target is not out:
        out[...] = target
    return out


def _check_gradient_size(g: Array, wanted: tuple[int, int]) -> None:
    if g.shape[1:3] != wanted:
        raise ValueError(f"g must have height and width {wanted}, got {g.shape[1:3]}")


def conv2d_at(
    x: ArrayLike,
    g: ArrayLike,
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    out: Array | None = None,
) -> Array:
    """Return the compact gradient of the weights of `gathered_conv2d`.

    ``dw[i, j, c, o]`` is the sum of ``x[b, y, x, c] g[b, y', x', o]`` over all images and pairs of
    a pixel and an output that meet at the tap.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, height, width, n_in)
    g : array_like of the same dtype, shape (batch, height', width', n_out)
    kernel_size, stride, padding, dilation : int or pair of int
        For height and width.
    out : ndarray of the same dtype, shape (*kernel_size, n_in, n_out), optional

    Returns
    -------
    ndarray, shape (*kernel_size, n_in, n_out)

    Raises
    ------
    TypeError, ValueError
        As for `gathered_conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import conv2d_at
    >>> x, g = np.arange(3.0).reshape(1, 1, 3, 1), np.ones((1, 1, 2, 1))
    >>> conv2d_at(x, g, kernel_size=(1, 2)).ravel()
    array([1., 3.])
    """
    x, g = check_images("x", x), check_images("g", g)
    check_alike("x", x, "g", g)
    kernel = check_pair("kernel_size", kernel_size, 1)
    axes = check_geometry(kernel, stride, padding, dilation)
    if len(x) != len(g):
        raise ValueError(f"x and g must have the same batch, got {len(x)} and {len(g)}")
    _check_gradient_size(g, out_size(axes, x.shape[1:3]))
    shape = (*kernel, x.shape[3], g.shape[3])
    if out is None:
        out = empty(shape, x)
    else:
        check_out(out, shape, x.dtype, ("x", "g"), x, g)
    if not is_host(x):
        return cuda().conv2d_at(x, g, axes=axes, out=out)
    _check_forward_frame(axes, x)
    x, g = as_dense(x), as_dense(g)
    dense = out if out.flags.c_contiguous else np.empty(shape, x.dtype)
    if g.size == 0:
        dense[...] = 0
    else:
        down, along = map(_forward, axes, x.shape[1:3])
        runs = _runs(down, along, kernel[1], merge=False)
        task = x.dtype, _Factor(1.0), *_patches(x, runs), address_of(g), g.shape[3]
        sizes = x.shape[3], g.shape[3], x.itemsize
        parallel = g.size * x.shape[3] * kernel[0] * kernel[1] >= _SERIAL_BELOW
        if winograd.pays(len(x), down, along, *sizes):
            elements = winograd.matrices_elements(down, along, *sizes)
            number = stretches(winograd.long_stretches(len(x), down, along), elements * x.itemsize)
            sums = empty((number * elements,), x)
            task = *task, address_of(sums), number
            run_task(winograd.correlate_part, *task, parallel=parallel)
            run_task(winograd.weights_part, *task, address_of(dense), parallel=parallel)
        else:
            number = stretches(len(x) * down.number, dense.nbytes) if parallel else 1
            sums = dense if number == 1 else empty((number, *shape), x)
            run_task(correlate_part, *task, address_of(sums), number, parallel=parallel)
            if number > 1:
                with np.errstate(all="ignore"):  # as silent as sums in a kernel
                    np.add.reduce(sums, axis=0, out=dense)
    if dense is not out:
        out[...] = dense
    return out


def scatter_conv2d(
    x: ArrayLike,
    g: ArrayLike,
    in_channels: Units = None,
    out_channels: Units = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    out: Array,
    alpha: float = 1.0,
) -> Array:
    """Add the gradient of gathered weights to a block of an array, in place.

    ``out[i, j, in_channels[c], out_channels[o]] += alpha dw[i, j, c, o]``, dw as `conv2d_at` has
    it. The rest of `out` is not touched.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (batch, height, width, len(in_channels))
    g : array_like of the same dtype, shape (batch, height', width', len(out_channels))
    in_channels, out_channels, stride, padding, dilation
        As for `gathered_conv2d`.
    out : ndarray of the same dtype, shape (kernel height, kernel width, n_in, n_out), C-contiguous
        It must not overlap `x` or `g`.
    alpha : float, default 1.0

    Returns
    -------
    ndarray
        `out`.

    Raises
    ------
    TypeError, ValueError
        As for `gathered_conv2d`, or if `out` is not C-contiguous.

    Notes
    -----
    The sum over a batch of images is as long as there are positions, so that the gradient is made
    whole before it is added: the scatter is a small part of the time. It treats denormal numbers as
    `update_block` does.

    Examples
    --------
    >>> import numpy as np
    >>> from numbadrop.kernels import scatter_conv2d
    >>> x, g, out = np.ones((1, 2, 2, 1)), np.ones((1, 2, 2, 1)), np.zeros((1, 1, 2, 2))
    >>> scatter_conv2d(x, g, [1], [0], out=out, alpha=0.5)[0, 0]
    array([[0., 0.],
           [2., 0.]])
    """
    x, g = check_images("x", x), check_images("g", g)
    check_is_array("out", out)
    if out.ndim != 4 or 0 in out.shape[:2]:
        raise ValueError(
            f"out must have shape (kernel height, kernel width, in, out), got {out.shape}"
        )
    check_out(out, out.shape, x.dtype, ("x", "g"), x, g)
    if is_host(out) and not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, its strides are {out.strides}")
    alpha = check_real("alpha", alpha, x.dtype)
    kernel, (n_in, n_out) = out.shape[:2], out.shape[2:]
    ins, outs = _channels(in_channels, out_channels, n_in, n_out)
    check_units("x", 3, x.shape[3], "in_channels", count_units(ins, n_in))
    check_units("g", 3, g.shape[3], "out_channels", count_units(outs, n_out))
    dw = conv2d_at(x, g, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation)
    matrix = out.reshape(kernel[0] * kernel[1] * n_in, n_out)
    rows = None if ins is None else IndexSet.all(kernel[0] * kernel[1]).outer(ins)
    slots = empty((0, *matrix.shape), out)
    values = dw.reshape(kernel[0] * kernel[1] * x.shape[3], g.shape[3])
    update_block(_Factor(alpha), matrix, slots, values, rows, outs)
    return out
