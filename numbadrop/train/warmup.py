"""Compiling ahead what a run needs, and telling whoever waits for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from numbadrop import kernels
from numbadrop.data import Dataset
from numbadrop.kernels.jit import cache_folder
from numbadrop.nn import cross_entropy
from numbadrop.train.fit import evaluate, train_step
from numbadrop.train.recipe import Recipe
from numbadrop.train.sending import send

__all__ = ["described_cache", "warm_up", "warm_up_net"]

SECONDS_UNTIL_SAID = 1.0
"""Loading compiled code from the cache takes less; only a first run has something to say."""


def warm_up(optimizers: Sequence[str], images: bool, verbose: bool = False) -> None:
    """Compile the kernels for float32 and the rules of some optimizers, or load them.

    What takes long is announced on standard error while it happens.

    Parameters
    ----------
    optimizers : sequence of {"sgd", "nag", "adam", "adamw"}
    images : bool
        Also what convolutional nets need.
    verbose : bool, default False
        Announce everything.
    """
    # Large enough that every kernel runs on several threads.
    batch, width = 100, 512
    x = np.ones((batch, width), np.float32)
    with _announced("matrix products on submatrices", verbose):
        kernels.gathered_matmul(x, np.ones((width, width), np.float32))
    if images:
        with _announced("convolutions and what is between them", verbose):
            model, _ = Recipe(model="deepcnet").build(64, 2, (8, 8, 1))
            inputs = np.random.default_rng(0).random((batch, 64), np.float32)
            cross_entropy(model(inputs), np.zeros(batch, np.int64)).backward()
    for name in optimizers:
        with _announced(f"the update rule of {name}", verbose):
            model, optimizer = Recipe(hidden=(width,), optimizer=name).build(width, 2)
            train_step(model, optimizer, x, np.zeros(batch, np.int64))


def warm_up_net(recipe: Recipe, data: Dataset) -> None:
    """Compile the kernels of a recipe's net for a GPU, or load them.

    Those of a GPU are made for tiles, layouts and numbers of parameters: no other net has the same.
    A net of its own is trained and evaluated, so that the run knows nothing of it.
    """
    # With a learning rate of 0 it cannot diverge.
    model, optimizer = replace(recipe, lr=0.0).build(data.features, data.classes, data.image_shape)
    model.to("cuda")
    x, y = next(data.minibatches(recipe.batch_size).batches(epoch=0))
    with _announced("the kernels of this net", verbose=False):
        train_step(model, optimizer, send(x, "cuda"), y, recipe.reduction)
        some = slice(250)  # As many as pass through the model at a time.
        evaluate(model, data.test_inputs[some], data.test_labels[some], divisor=data.divisor)


def described_cache() -> str:
    """Say where the compiled kernels are kept, and how much there is."""
    folder = cache_folder()
    if folder is None:
        return "none, no folder for it can be written to: NUMBA_CACHE_DIR names one"
    kinds = "*.nb[ci]", "*.cubin"  # of Numba, and of a GPU
    sizes = [path.stat().st_size for kind in kinds for path in folder.glob(kind)]
    return f"{folder}, {len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"


@contextmanager
def _announced(what: str, verbose: bool) -> Iterator[None]:
    """Say what is being compiled, and then the time: always, or only if there is a wait."""
    announcement = threading.Timer(
        SECONDS_UNTIL_SAID, _say, (f"compiling {what} for this machine, once ...",)
    )
    announcement.daemon = True
    if verbose:
        _say(f"{what} ...")
    else:
        announcement.start()
    began = time.perf_counter()
    try:
        yield
    finally:
        announcement.cancel()
    if verbose or time.perf_counter() - began > SECONDS_UNTIL_SAID:
        _say(f"    {time.perf_counter() - began:.1f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
