"""The convolutional nets that have a name on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from numbadrop.nn import (
    BatchNorm2d,
    BatchwiseDropout,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    Sequential,
    Unflatten,
)

__all__ = ["CONVOLUTIONAL", "ConvolutionalNet"]


@dataclass(frozen=True)
class ConvolutionalNet:
    """A convolutional net, in the notation of its time.

    Parameters
    ----------
    notation : str
        ``32C5`` is a convolution to 32 channels by 5 x 5, which leaves the image's size as it is (5
        is odd), ``MP2`` max-pooling by 2 x 2 and ``512N`` a hidden layer of 512 units. The output
        layer is not written.
    negative_slope : float
        Of the leaky ReLU behind each layer with weights.
    dropped : tuple of float
        For each of these layers, the share of the net's dropout that comes behind it.
    """

    notation: str
    negative_slope: float
    dropped: tuple[float, ...]

    def build(
        self, image_shape: tuple[int, int, int], classes: int, pattern: str, dropout: float
    ) -> Sequential:
        """Return the net, for samples of flattened NHWC images.

        Pixels are standardized first, each channel by the statistics of the batch.

        Parameters
        ----------
        image_shape : tuple of int
            Height, width and channels.
        classes : int
        pattern : {"batchwise", "independent", "none"}
            "independent" drops whole channels of each image behind a convolution.
        dropout : float
            The largest fraction dropped.

        Raises
        ------
        ValueError
            If the images are too small for the net.

        Examples
        --------
        >>> import numpy as np
        >>> net = CONVOLUTIONAL["lenet"].build((28, 28, 1), 10, "batchwise", 0.5)
        >>> net(np.zeros((2, 784), np.float32)).value.shape
        (2, 10)
        """
        layers: list[Module] = [Unflatten(image_shape, "NHWC")]
        layers.append(BatchNorm2d(image_shape[2], affine=False))
        layers += self._layers(image_shape, classes, pattern, dropout)
        return Sequential(*layers[:-1])  # no nonlinearity behind the output layer

    def _layers(
        self, image_shape: tuple[int, int, int], classes: int, pattern: str, dropout: float
    ) -> Iterator[Module]:
        height, width, n = image_shape
        gain = sqrt(6 / (1 + self.negative_slope**2))  # keeps the variance, layer by layer
        is_image = True
        # Dropout comes right before the next layer with weights, behind the pooling.
        shares = iter((0.0, *self.dropped))
        for step in (*self.notation.split("-"), f"{classes}N"):
            count, kind, size = _parsed(step)
            if kind == "MP":
                height, width = height // size, width // size
                if min(height, width) < 1:
                    raise ValueError(f"images of {image_shape} are too small for {self.notation}")
                yield MaxPool2d(size)
                continue
            p = dropout * next(shares)
            if p > 0 and pattern == "batchwise":
                yield BatchwiseDropout(p)
            elif p > 0 and pattern == "independent":
                yield Dropout2d(p) if is_image else Dropout(p)
            if kind == "C":
                yield Conv2d(n, count, size, padding=size // 2, gain=gain)
            else:
                if is_image:
                    yield Flatten()
                    n *= height * width
                    is_image = False
                yield Linear(n, count, gain=gain)
            n = count
            yield LeakyReLU(self.negative_slope)


def _parsed(step: str) -> tuple[int, str, int]:
    match = re.fullmatch(r"(\d*)(C|MP|N)(\d*)", step)
    assert match is not None, step
    count, kind, size = match.groups()
    return int(count or 0), kind, int(size or 0)


CONVOLUTIONAL = {
    "lenet": ConvolutionalNet("32C5-MP2-64C5-MP2-512N", 0.0, (0, 0.5, 1)),
    "deepcnet": ConvolutionalNet(
        "64C3-64C3-MP2-128C3-128C3-MP2-256C3-256C3-MP2-512N",
        1 / 3,
        (0, 0.2, 0.4, 0.6, 0.8, 1, 1),
    ),
}
"""Behind the first layers nothing is dropped, and more with depth: Graham's habit."""
