"""A net and how it is trained, as plain data: what the command line builds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, Self, get_args

from numbadrop.data import Augmentation
from numbadrop.nn import BatchwiseDropout, Dropout, Linear, Module, ReLU, Sequential
from numbadrop.optim import NAG, SGD, Adam, AdamW, Optimizer, schedules
from numbadrop.train.models import CONVOLUTIONAL

__all__ = ["LEARNING_RATES", "Recipe", "augmentation_from", "graham", "schedule_from"]

Pattern = Literal["batchwise", "independent", "none"]

LEARNING_RATES = {"sgd": 0.02, "nag": 0.2, "adam": 1e-3, "adamw": 1e-3}
"""Starting points for each optimizer, with a mean loss. NAG itself multiplies by 1 - momentum."""


@dataclass(frozen=True)
class Recipe:
    """The net and its training.

    Parameters
    ----------
    model : {"mlp", "lenet", "deepcnet"}
        A multilayer perceptron, or a net of `models.CONVOLUTIONAL`.
    hidden : tuple of int
        Of a perceptron, sizes of the hidden layers, each followed by a ReLU.
    pattern : {"batchwise", "independent", "none"}
        Kind of dropout.
    input_dropout, dropout : float
        Fractions dropped, in [0, 1): of a perceptron's inputs and of each hidden layer; of a
        convolutional net, the largest of any layer.
    optimizer : {"sgd", "nag", "adam", "adamw"}
        "sgd" is PyTorch's form with Nesterov momentum, "nag" the look-ahead form.
    lr : float
    momentum : float
        For "sgd" and "nag".
    schedule : str
        As `schedule_from` reads it.
    augment : str
        As `augmentation_from` reads it.
    batch_size, epochs, seed : int
    reduction : {"mean", "sum"}
        How the losses of a batch become one.
    reference : bool
        Start and scale as the reference of `graham` does.
    """

    model: str = "mlp"
    hidden: tuple[int, ...] = (800, 800)
    pattern: Pattern = "batchwise"
    input_dropout: float = 0.2
    dropout: float = 0.5
    optimizer: str = "nag"
    lr: float = LEARNING_RATES["nag"]
    momentum: float = 0.9
    schedule: str = "cosine"
    augment: str = "none"
    batch_size: int = 100
    epochs: int = 20
    seed: int = 0
    reduction: Literal["mean", "sum"] = "mean"
    reference: bool = False

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Return the recipe of which `as_dict` made `fields`."""
        return cls(**{**fields, "hidden": tuple(fields["hidden"])})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields in a form that survives JSON."""
        return {**asdict(self), "hidden": list(self.hidden)}

    def build(
        self, features: int, classes: int, image_shape: tuple[int, int, int] | None = None
    ) -> tuple[Module, Optimizer]:
        """Return a fresh net and its optimizer.

        Parameters
        ----------
        features, classes : int
        image_shape : tuple of int, optional
            Height, width and channels, in which the features are an image; convolutional nets need
            it.

        Raises
        ------
        ValueError
            If a field is out of range, or the data do not fit the net.
        """
        patterns = get_args(Pattern)
        if self.pattern not in patterns:
            raise ValueError(f"pattern must be one of {patterns}, got {self.pattern!r}")
        if self.model == "mlp":
            return self._perceptron(features, classes)
        if self.model not in CONVOLUTIONAL:
            known = ", ".join(("mlp", *CONVOLUTIONAL))
            raise ValueError(f"model must be one of {known}, got {self.model!r}")
        if image_shape is None:
            raise ValueError(f"model {self.model!r} needs images, these data are not")
        net = CONVOLUTIONAL[self.model]
        model = net.build(image_shape, classes, self.pattern, self.dropout).seed(self.seed)
        return model, self._optimizer([{"params": model.parameters()}])

    def _perceptron(self, features: int, classes: int) -> tuple[Module, Optimizer]:
        layers: list[Module] = []
        weights: list[dict[str, Any]] = []
        biases = []
        widths = (features, *self.hidden, classes)
        for index, (n_in, n_out) in enumerate(pairwise(widths)):
            p = self._dropped_before(index)
            is_last = index == len(self.hidden)
            if p > 0:
                layers.append(BatchwiseDropout(p) if self.pattern == "batchwise" else Dropout(p))
            # The reference does not scale what dropout keeps; we multiply it by 1 / (1 - p). Its
            # weight w is our w' = (1 - p) w: the product w' (x / (1 - p)) is the same. The gradient
            # for w' is 1 / (1 - p) of that for w, and w' has to move (1 - p) as far, so that its
            # learning rate is (1 - p)^2 of that for w. Biases see no scaling.
            gain = 1.0 if not self.reference else 0.0 if is_last else 1 - p
            linear = Linear(n_in, n_out, gain=gain)
            layers.append(linear)
            weights.append(
                {
                    "params": [linear.weight],
                    "lr": self.lr * (1 - p) ** 2 if self.reference else self.lr,
                }
            )
            biases.append(linear.bias)
            if not is_last:
                layers.append(ReLU())
        model = Sequential(*layers).seed(self.seed)
        return model, self._optimizer([*weights, {"params": biases}])

    def _dropped_before(self, index: int) -> float:
        """Return the fraction that is dropped of the inputs of linear layer `index`."""
        if self.pattern == "none":
            return 0.0
        return self.input_dropout if index == 0 else self.dropout

    def _optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        match self.optimizer:
            case "sgd":
                return SGD(groups, self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
            case "nag":
                return NAG(groups, self.lr, self.momentum)
            case "adam":
                return Adam(groups, self.lr)
            case "adamw":
                return AdamW(groups, self.lr)
        raise ValueError(f"optimizer must be sgd, nag, adam or adamw, got {self.optimizer!r}")


def graham(data: str, **changes: Any) -> Recipe:
    """Return the reference's recipe for a data set, with some fields changed.

    A sum loss, and Nesterov's gradient in its look-ahead form.

    Parameters
    ----------
    data : str
        "artificial", or anything else for the recipe of MNIST.
    **changes
        Fields of `Recipe`.

    References
    ----------
    B. Graham, J. Reizenstein, L. Robinson, "Efficient batchwise dropout training using
    submatrices", arXiv:1502.02478 (2015), and its code.
    """
    fields: dict[str, Any] = {"reduction": "sum", "optimizer": "nag", "reference": True}
    if data == "artificial":
        fields |= {"hidden": (1000, 1000, 1000), "input_dropout": 0.5, "lr": 0.001}
        fields |= {"schedule": "constant", "epochs": 300}
    else:
        fields |= {"lr": 0.01, "schedule": "exponential:0.01", "epochs": 200}
    return Recipe(**{**fields, **changes})


def schedule_from(text: str, epochs: int) -> Callable[[float], float]:
    """Return the learning-rate schedule that a text names.

    Parameters
    ----------
    text : str
        ``constant``, ``exponential[:RATE]``, ``cosine`` or ``step[:EVERY[:FACTOR]]``, by default
        with the rate 0.01 an epoch, and a factor of 0.1 after each third of the epochs.
    epochs : int
        Length of the run.

    Raises
    ------
    ValueError
        If the text is none of these, or a number in it is out of range.

    Examples
    --------
    >>> schedule_from("step:2:0.5", epochs=6)(4.0)
    0.25
    """
    name, *texts = text.split(":")
    try:
        given = [float(number) for number in texts]
    except ValueError:
        given = [math.nan]  # refused below, with the rest
    match name, given:
        case "constant", []:
            return schedules.constant()
        case "cosine", []:
            return schedules.cosine(epochs)
        case "exponential", [] | [_]:
            return schedules.exponential(*(given or [0.01]))
        case "step", [] | [_] | [_, _]:
            return schedules.step(*given, *[max(1.0, epochs / 3), 0.1][len(given) :])
    raise ValueError(
        "schedule must be constant, exponential[:RATE], cosine or step[:EVERY[:FACTOR]], "
        f"got {text!r}"
    )


def augmentation_from(text: str) -> Augmentation | None:
    """Return the augmentation that a text names.

    Parameters
    ----------
    text : str
        ``none``, or ``SHIFT[,flip]``: move images by up to SHIFT pixels, and mirror half of them.

    Raises
    ------
    ValueError
        If the text is neither.

    Examples
    --------
    >>> augmentation_from("4,flip")
    Augmentation(shift=4, flip=True)
    """
    shift, *rest = text.split(",")
    if text == "none":
        return None
    if shift.isdecimal() and rest in ([], ["flip"]):
        return Augmentation(int(shift), flip=bool(rest))
    raise ValueError(f"augment must be none or SHIFT[,flip], such as 4,flip, got {text!r}")
