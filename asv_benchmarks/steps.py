"""Time whole training steps of several nets, here, in PyTorch and in JAX, and take one apart.

    pip install ".[bench]" torch jax
    python asv_benchmarks/steps.py

Nesterov's momentum and a summed loss on random data, with dropout of 0.2 on the input and 0.5 on
hidden units, and without any. PyTorch runs eagerly and compiled, where it finds a C++ compiler; a
library that is not installed is left out. PyTorch gets as many threads as numbadrop; JAX takes
all cores that the process may use.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from benchmarks.training import BATCH, NETS, P_HIDDEN, P_INPUT, PATTERNS, Step, minibatch

from numbadrop import kernels
from numbadrop.bench import Run, peak, quartiles
from numbadrop.kernels import run_product, threads

TURN = 0.1
"""Seconds that are counted at a time."""


def numbadrop_step(net: str, pattern: str) -> Run:
    """Return the step that asv times, too."""
    step = Step()
    step.setup(net, pattern)
    return step.run


def torch_step(widths: tuple[int, ...], dropout: bool, compiled: bool) -> Run:
    """Return the same step in PyTorch, whose dropout masks each value."""
    import torch

    torch.set_num_threads(kernels.get_num_threads())
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Dropout(P_INPUT)] if dropout else []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        layers += [torch.nn.Dropout(P_HIDDEN)] if dropout else []
    net: Any = torch.nn.Sequential(*layers, torch.nn.Linear(*widths[-2:]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9, nesterov=True)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    if compiled:
        net = torch.compile(net)
    x, labels = map(torch.as_tensor, minibatch(widths))

    def run() -> None:
        optimizer.zero_grad()
        loss(net(x), labels).backward()
        optimizer.step()

    return run


def jax_step(widths: tuple[int, ...], dropout: bool) -> Run:
    """Return the same step in JAX, jitted as a whole, its state donated."""
    import jax
    from jax import numpy as jnp

    rng = np.random.default_rng(0)
    weights = [
        (rng.standard_normal((n, m)).astype(np.float32) / 30, np.zeros(m, np.float32))
        for n, m in pairwise(widths)
    ]
    x, labels = map(jnp.asarray, minibatch(widths))

    def loss(weights: Any, x: Any, key: Any) -> Any:
        keys = jax.random.split(key, len(weights))
        for number, (w, b) in enumerate(weights):
            if dropout:
                p = P_INPUT if number == 0 else P_HIDDEN
                x = jnp.where(jax.random.bernoulli(keys[number], 1 - p, x.shape), x / (1 - p), 0)
            x = x @ w + b
            if number < len(weights) - 1:
                x = jax.nn.relu(x)
        return -jax.nn.log_softmax(x)[jnp.arange(BATCH), labels].sum()

    def step(weights: Any, momenta: Any, key: Any) -> Any:
        key, draw = jax.random.split(key)
        gradients = jax.grad(loss)(weights, x, draw)
        momenta = jax.tree.map(lambda m, g: 0.9 * m + g, momenta, gradients)
        weights = jax.tree.map(
            lambda w, m, g: w - 1e-5 * (g + 0.9 * m), weights, momenta, gradients
        )
        return weights, momenta, key

    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = [jax.tree.map(jnp.asarray, weights), jax.tree.map(jnp.zeros_like, weights)]
    state.append(jax.random.key(0))

    def run() -> None:
        state[:] = jitted(*state)
        jax.block_until_ready(state)

    return run


def contestants(net: str) -> dict[str, Run]:
    """Return the steps that this machine can run, each warmed up."""
    widths = NETS[net]
    makers: dict[str, Callable[[], Run]] = {
        f"numbadrop {pattern}": partial(numbadrop_step, net, pattern) for pattern in PATTERNS
    }
    for dropout in (True, False):
        kind = "dropout" if dropout else "none"
        makers[f"PyTorch {kind} eager"] = partial(torch_step, widths, dropout, compiled=False)
        makers[f"PyTorch {kind} compiled"] = partial(torch_step, widths, dropout, compiled=True)
        makers[f"JAX {kind}"] = partial(jax_step, widths, dropout)
    runs = {}
    for name, make in makers.items():
        try:
            run = make()
            run()
        except (ImportError, RuntimeError) as error:  # not installed, or no C++ compiler
            reason = (str(error) or "no message").splitlines()[0]
            print(f"{name}: not timed, {type(error).__name__}: {reason}")
        else:
            runs[name] = run
    return runs


def flops(widths: tuple[int, ...], p_input: float, p_hidden: float) -> float:
    """Return the FLOPs of a step's products: the input's gradient is not needed."""
    keep = [1 - p_input, *[1 - p_hidden] * (len(widths) - 2), 1.0]
    kept = [round(q * n) for q, n in zip(keep, widths, strict=True)]
    pairs = pairwise(kept)
    return 2.0 * BATCH * sum((2 if k == 0 else 3) * n * m for k, (n, m) in enumerate(pairs))


# ----------------------------------------------------------------------- where a step goes

PARTS = (
    (kernels, "sample_units", "draw the patterns"),
    (kernels, "take_columns", "gather the input"),
    (kernels, "gathered_linear", "forward products, bias, ReLU, scale"),
    (kernels, "cross_entropy", "loss"),
    (kernels, "cross_entropy_gradient", "gradient of the loss"),
    (kernels, "rectifier_gradient", "gradients of ReLU, scale, bias"),
    (kernels, "gathered_matmul_t", "input gradients"),
    (kernels, "matmul_at", "weight gradients"),
    (kernels, "update_blocks", "update"),
)


@contextmanager
def spied(spent: dict[str, float], native: dict[str, float]) -> Iterator[None]:
    """Add to `spent` the seconds in each door, and to `native` those in its kernel."""
    from numbadrop.nn import dropout

    inside = [""]
    undo = []

    def replace(owner: Any, name: str, new: Callable[..., Any]) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def door(function: Callable[..., Any], label: str) -> Callable[..., Any]:
        def spy(*args: Any, **named: Any) -> Any:
            inside[0] = label
            start = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                spent[label] += time.perf_counter() - start

        return spy

    def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        def spy(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                native[inside[0]] += time.perf_counter() - start

        return spy

    product_door = run_product.native_door(np.dtype(np.float32))
    assert product_door is not None
    product_door = product_door._replace(multiply=kernel(product_door.multiply))

    for owner, name, label in PARTS:
        replace(owner, name, door(getattr(owner, name), label))
    replace(dropout, "sample_units", kernels.sample_units)
    replace(threads, "run", kernel(threads.run))
    replace(run_product, "native_door", lambda dtype: product_door)
    try:
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def take_apart(net: str, steps: int = 500) -> None:
    """Print where the microseconds of a batchwise step go, beside the roof."""
    run = numbadrop_step(net, "batchwise")
    for _ in range(50):
        run()
    start = time.perf_counter()
    for _ in range(steps):
        run()
    whole = (time.perf_counter() - start) / steps
    spent: dict[str, float] = defaultdict(float)
    native: dict[str, float] = defaultdict(float)
    with spied(spent, native):
        for _ in range(steps):
            run()
    top = peak("float32", kernels.get_num_threads())
    work = flops(NETS[net], P_INPUT, P_HIDDEN)
    print("| part | in the kernel, us | with its door, us |\n| --- | ---: | ---: |")
    for _, _, label in PARTS:
        print(f"| {label} | {native[label] / steps * 1e6:.0f} | {spent[label] / steps * 1e6:.0f} |")
    rest = whole - sum(spent.values()) / steps
    print(f"| layers, tape, optimizer: Python | | {rest * 1e6:.0f} |")
    print(f"| whole step | {sum(native.values()) / steps * 1e6:.0f} | {whole * 1e6:.0f} |")
    print(
        f"\n{work / 1e9:.3f} GFLOP, {work / top * 1e6:.0f} us at the {top / 1e9:.0f} GFLOP/s of "
        "the register tile alone\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="*", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    print(
        f"batch {BATCH}, {kernels.get_num_threads()} threads, "
        f"{options.rounds} turns of {TURN} s each\n"
    )
    for name in options.nets:
        print(f"### {name}\n")
        result = quartiles(contestants(name), options.rounds, TURN)
        base = result["numbadrop batchwise"][1]
        print("| step | ms | quartiles | / batchwise |\n| --- | ---: | ---: | ---: |")
        for row, (low, middle, high) in result.items():
            spread = f"{1e3 * low:.2f}-{1e3 * high:.2f}"
            print(f"| {row} | {1e3 * middle:.2f} | {spread} | {middle / base:.2f} |")
        saved = flops(NETS[name], 0, 0) / flops(NETS[name], P_INPUT, P_HIDDEN)
        print(f"\nFLOPs of no dropout / batchwise: {saved:.2f}\n")
        take_apart(name)


if __name__ == "__main__":
    main()
