"""What dropout does to the time of a training step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

from numbadrop.data import Dataset
from numbadrop.train.fit import train_step
from numbadrop.train.recipe import Recipe
from numbadrop.train.sending import send

__all__ = ["step_times"]


def step_times(
    recipes: Mapping[str, Recipe], data: Dataset, rounds: int = 41, device: str = "cpu"
) -> dict[str, float]:
    """Measure the median time of a training step of fresh nets, in milliseconds.

    The nets take turns, so that whatever else the machine does meets them all alike.

    Parameters
    ----------
    recipes : mapping of str to Recipe
        Of equal batch size.
    data : Dataset
    rounds : int, default 41
        Steps of each net; a tenth more come first and do not count.
    device : {"cpu", "cuda"}
        Where the nets and the minibatches are.

    Returns
    -------
    dict of str to float
        Of forward, backward and update; assembling the minibatch is not part of it.
    """
    # A learning rate of 0 costs the same and cannot diverge.
    nets = {
        name: replace(recipe, lr=0.0).build(data.features, data.classes, data.image_shape)
        for name, recipe in recipes.items()
    }
    for model, _ in nets.values():
        model.to(device)
    batch_size = next(iter(recipes.values())).batch_size
    minibatches = data.minibatches(batch_size)
    times: dict[str, list[float]] = {name: [] for name in recipes}
    uncounted = rounds // 10 + 1
    for number in range(uncounted + rounds):
        x, y = next(minibatches.batches(epoch=number))
        x = send(x, device)
        for name, (model, optimizer) in nets.items():
            began = time.perf_counter()
            train_step(model, optimizer, x, y)
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: median(taken[uncounted:]) for name, taken in times.items()}
