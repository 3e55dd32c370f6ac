"""Training and evaluation of classifiers: two plain loops, and what lets a run stop and go on."""

from __future__ import annotations

import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from numbadrop.autograd import Variable, no_grad
from numbadrop.data import Augmentation, Dataset, as_floats
from numbadrop.errors import UserError
from numbadrop.kernels.device import is_host, to_host
from numbadrop.kernels.recycling import release_memory
from numbadrop.nn import Module, cross_entropy
from numbadrop.optim import Optimizer
from numbadrop.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_config,
    load_checkpoint,
    save_checkpoint,
)
from numbadrop.train.metrics import (
    EpochMetrics,
    append_metrics,
    error_rate,
    misses,
    top_k_error,
    write_metrics,
)
from numbadrop.train.progress import Silent, progress_for
from numbadrop.train.sending import send, sent_ahead

__all__ = [
    "CHECKPOINT_NAME",
    "METRICS_NAME",
    "DivergedError",
    "Evaluation",
    "TrainingInterrupted",
    "evaluate",
    "fit",
    "train_step",
]

Array = NDArray[Any]
Reduction = Literal["mean", "sum"]

CHECKPOINT_NAME = "checkpoint.safetensors"
METRICS_NAME = "metrics.jsonl"


class DivergedError(UserError, ArithmeticError):
    """The training loss, or a weight, became NaN or infinite."""

    exit_code = 1


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during `fit`: the step was finished and, with an output folder, the state saved."""


class Evaluation(NamedTuple):
    """Mean loss, and the fraction of samples that a model gets wrong."""

    loss: float
    error: float
    top_k_error: float


@dataclass
class _Run:
    """Where a run stands; what a checkpoint keeps of it beside the tensors."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps done in the epoch under way, and their sums:
    loss_sum: float = 0.0
    misses: int = 0
    seconds: float = 0.0
    history: list[EpochMetrics] = field(default_factory=list)


def fit(
    model: Module,
    optimizer: Optimizer,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int = 100,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    reduction: Reduction = "mean",
    schedule: Callable[[float], float] | None = None,
    patience: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    progress: bool = True,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
) -> list[EpochMetrics]:
    """Train a classifier with cross-entropy.

    Parameters
    ----------
    model : Module
        Gives one score a class. Trained in place, all layers of it in the mode of training, and
        where it is: on a GPU after ``model.to("cuda")``, to which minibatches are sent ahead.
    optimizer : Optimizer
        Of the model's parameters.
    data : Dataset
    epochs : int
        How many there shall be in the end; those of a resumed run count.
    batch_size : int, default 100
    seed : int, default 0
        Of the order of the samples and their augmentation; see `Minibatches`. Dropout draws from
        the model's generator.
    augmentation : Augmentation, optional
        Of the training images.
    reduction : {"mean", "sum"}, default "mean"
        How the losses of a batch become one. With "sum", learning rates are smaller by a factor
        of the batch size.
    schedule : callable, optional
        From the number of epochs passed, a float, to the factor on every learning rate; asked
        before each step.
    patience : int, optional
        Stop once the test error has not improved for so many epochs.
    output : path, optional
        Folder for ``checkpoint.safetensors``, written at the start and after each epoch, and for
        ``metrics.jsonl`` with a line of `EpochMetrics` each. Made if need be.
    resume : bool, default False
        Go on from the checkpoint in `output`, with the state in it instead of the state of `model`
        and `optimizer`; hyper-parameters are theirs. The result is that of a run without
        interruption, bit for bit. (To rounding, if Ctrl-C came within an epoch and the optimizer
        has inactive="catch_up": weights that are saved have to catch up first.)
    config : dict, optional
        Kept in the checkpoint; JSON.
    progress : bool, default True
        Print a line an epoch; on a terminal, a live one too.
    on_epoch : callable, optional
        Called with the metrics of each epoch, after they and the checkpoint are written. What it
        changes is in the next one, but for hyper-parameters, which are in none.

    Returns
    -------
    list of EpochMetrics
        All epochs, those before a resumption too.

    Raises
    ------
    DivergedError
        If a loss or weight is no longer finite. The last checkpoint is one from before.
    TrainingInterrupted
        After Ctrl-C, which lets the step finish and writes a checkpoint. A second Ctrl-C does not
        wait.
    CheckpointError
        If `resume` finds no checkpoint, or one of another model, optimizer or run; or if, without
        `resume`, `output` holds a checkpoint already.
    TypeError
        If `config` is not JSON, or the model does not take the data.
    ValueError
        If an argument is out of range, or the model does not give a score for each class.

    Examples
    --------
    >>> from numbadrop.data import artificial
    >>> from numbadrop.nn import BatchwiseDropout, Linear, ReLU, Sequential
    >>> from numbadrop.optim import SGD
    >>> data = artificial(2, 200, 100, features=30, steps=3, noise=0.1)
    >>> model = Sequential(Linear(30, 20), ReLU(), BatchwiseDropout(0.5), Linear(20, 2)).seed(0)
    >>> history = fit(model, SGD(model.parameters(), lr=0.1), data, epochs=5, progress=False)
    >>> len(history), history[-1].test_error < 0.1
    (5, True)
    """
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if patience is not None and patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}")
    if resume and output is None:
        raise ValueError("resume needs output, the folder of the run")
    minibatches = data.minibatches(batch_size, seed, augmentation)
    samples, steps = len(data.train_inputs), len(minibatches)
    identity = {
        "samples": samples,
        "labels": zlib.crc32(data.train_labels.tobytes()),
        "batch_size": batch_size,
        "seed": seed,
        "augmentation": None if augmentation is None else asdict(augmentation),
        "reduction": reduction,
        "optimizer": type(optimizer).__name__,
    }
    folder = None if output is None else Path(output)
    device = model.device
    # Before anything is written.
    _try_out(model, data)
    check_config(config)
    run = _start_run(folder, resume, model, optimizer, identity)

    def save(run: _Run) -> None:
        """Write a checkpoint, once the state is known to be worth keeping."""
        now = Checkpoint.capture(model, optimizer, {**asdict(run), **identity}, config or {})
        if not now.is_finite():
            raise DivergedError("a weight, or a slot of the optimizer, is not finite")
        if folder is not None:
            save_checkpoint(folder / CHECKPOINT_NAME, now)

    report = progress_for(epochs, steps) if progress else Silent()
    try:
        with report, _CtrlC() as ctrl_c, _mode(model, training=True):
            if not resume:
                save(run)
            while run.epoch < epochs and not _is_stale(run.history, patience):
                step_seconds = []
                clock = time.perf_counter()
                batches = minibatches.batches(run.epoch, start=run.step)
                for x, y in sent_ahead(batches, steps - run.step, device):
                    if schedule is not None:
                        optimizer.lr_scale = schedule(run.epoch + run.step / steps)
                    loss, scores = train_step(model, optimizer, x, y, reduction)
                    step_seconds.append(time.perf_counter() - clock)

                    run.step += 1
                    run.loss_sum += loss if reduction == "sum" else loss * len(y)
                    run.misses += int(misses(scores, y).sum())
                    run.seconds += step_seconds[-1]
                    mean_loss = run.loss_sum / min(run.step * batch_size, samples)
                    report.on_step(run.epoch + 1, run.step, mean_loss, step_seconds[-1])
                    if ctrl_c.pressed and run.step < steps:
                        save(run)
                        raise TrainingInterrupted
                    clock = time.perf_counter()

                metrics = EpochMetrics(
                    epoch=run.epoch + 1,
                    train_loss=run.loss_sum / samples,
                    train_error=run.misses / samples,
                    test_error=evaluate(
                        model, data.test_inputs, data.test_labels, divisor=data.divisor
                    ).error,
                    seconds=run.seconds,
                    step_ms_median=1e3 * median(step_seconds),
                )
                complete = _Run(epoch=metrics.epoch, history=[*run.history, metrics])
                save(complete)
                run = complete
                if folder is not None:
                    append_metrics(folder / METRICS_NAME, metrics)
                report.on_epoch(metrics)
                if on_epoch is not None:
                    on_epoch(metrics)
                if ctrl_c.pressed:
                    raise TrainingInterrupted
    except DivergedError as error:
        saved = folder is not None and folder / CHECKPOINT_NAME
        kept = f"; the last good state is in {saved}" if saved and saved.exists() else ""
        raise DivergedError(
            f"{error}, in epoch {run.epoch + 1} after {run.step} of {steps} steps{kept}. "
            "A lower learning rate may help"
        ) from None
    except TrainingInterrupted:
        kept = f"; {folder / CHECKPOINT_NAME} is ready to resume" if folder else ""
        raise TrainingInterrupted(
            f"interrupted in epoch {run.epoch + 1} after {run.step} of {steps} steps{kept}"
        ) from None
    finally:
        release_memory()  # The next large arrays may be as far off as the end of the program.
    return run.history


def train_step(
    model: Module, optimizer: Optimizer, x: Array, y: Array, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Do one step of gradient descent on the cross-entropy of a minibatch.

    Parameters
    ----------
    model : Module
    optimizer : Optimizer
    x : ndarray or DeviceArray
        Where the model is.
    y : ndarray of int, shape (batch,)
    reduction : {"mean", "sum"}

    Returns
    -------
    loss : float
        Before the step, reduced over the batch.
    scores : ndarray, shape (batch, classes)

    Raises
    ------
    DivergedError
        If the loss is not finite; no parameter has been changed then, but running statistics have
        seen the batch. On a GPU parameters have been changed too: all of a step is under way there
        before its loss is waited for.

    Examples
    --------
    >>> from numbadrop.nn import Linear
    >>> from numbadrop.optim import SGD
    >>> model = Linear(2, 2, gain=0.0)
    >>> optimizer = SGD(model.parameters(), lr=1.0)
    >>> x, y = np.eye(2, dtype=np.float32), np.array([0, 1])
    >>> [round(train_step(model, optimizer, x, y)[0], 2) for _ in range(2)]
    [0.69, 0.47]
    """
    with _quiet_overflow():
        scores = model(x)
        loss = cross_entropy(scores, y, reduction)
    if is_host(loss.value):
        _finite(loss)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return _finite(loss), to_host(scores.value)


def _try_out(model: Module, data: Dataset) -> None:
    """Raise an error if the model has no answer for the data."""
    few = data.test_inputs[:250]  # as `evaluate` will, whose kernels on a GPU are for their number
    with no_grad(), _mode(model, training=False), _quiet_overflow():
        scores = model(send(as_floats(few, data.divisor), model.device)).value
    if scores.ndim != 2 or scores.shape[1] < data.classes:
        raise ValueError(
            f"model must give one score for each of {data.classes} classes, "
            f"gives shape {scores.shape} for {len(few)} samples"
        )


def _finite(loss: Variable) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(f"the training loss is {value}")
    return value


def evaluate(
    model: Module,
    inputs: Array,
    labels: Array,
    *,
    divisor: float | None = None,
    top_k: int = 1,
    batch_size: int = 250,
) -> Evaluation:
    """Measure a classifier without dropout.

    The model stays as it is. So does its mode, which is another while this runs, for all threads.

    Parameters
    ----------
    model : Module
    inputs : ndarray, shape (samples, features)
    labels : ndarray of int, shape (samples,)
    divisor : float, optional
        That of the `Dataset`: what `inputs` are divided by if they are whole numbers, of which it
        must be given.
    top_k : int, default 1
        A sample counts in `top_k_error` if its label is not among so many highest scores.
    batch_size : int, default 250
        How many samples pass through the model at a time.

    Returns
    -------
    Evaluation
        ``loss``, the mean cross-entropy, ``error`` and ``top_k_error``, fractions.

    Raises
    ------
    TypeError
        If labels are not integers.
    ValueError
        If there are no samples, a label, `top_k` or `batch_size` is out of range, or `divisor` is
        missing.

    Examples
    --------
    >>> from numbadrop.nn import Dropout
    >>> inputs = np.array([[9.0, 0.0, 1.0], [0.0, 1.0, 9.0]])
    >>> result = evaluate(Dropout(0.5), inputs, labels=np.array([0, 1]), top_k=2)
    >>> result.error, result.top_k_error
    (0.5, 0.0)
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if len(inputs) != len(labels) or len(labels) == 0:
        raise ValueError(
            "inputs and labels must have one entry a sample and at least one sample, "
            f"got shapes {inputs.shape} and {labels.shape}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if divisor is None:
        if inputs.dtype.kind in "iu":
            raise ValueError(
                f"divisor must be given for inputs of {inputs.dtype}: that of the Dataset, by "
                "which training divides them"
            )
        divisor = 1.0
    device = model.device
    batched = (inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size))
    with no_grad(), _mode(model, training=False), _quiet_overflow():
        chunks = [model(send(as_floats(chunk, divisor), device)).value for chunk in batched]
        # A GPU has all to do before the first result is waited for.
        scores = np.concatenate([to_host(chunk) for chunk in chunks])
        loss = float(cross_entropy(scores, labels))
    return Evaluation(loss, error_rate(scores, labels), top_k_error(scores, labels, top_k))


def _start_run(
    folder: Path | None,
    resume: bool,
    model: Module,
    optimizer: Optimizer,
    identity: dict[str, Any],
) -> _Run:
    """Return where the run stands, with the model and the files brought to that point."""
    run = _Run()
    if folder is None:
        return run
    path = folder / CHECKPOINT_NAME
    if resume:
        saved = load_checkpoint(path)
        try:
            differences = [
                f"{name} {saved.progress[name]!r} there, {value!r} here"
                for name, value in identity.items()
                if saved.progress[name] != value
            ]
            run = _Run(**{name: saved.progress[name] for name in vars(run)})
            run.history = [EpochMetrics(*row) for row in run.history]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: no progress of a run in it, {error}") from error
        if differences:
            raise CheckpointError(f"{path} is of another run: {'; '.join(differences)}")
        saved.restore(model, optimizer)
    elif path.exists():
        raise CheckpointError(
            f"{path} exists already: resume that run, or choose another folder for this one"
        )
    folder.mkdir(parents=True, exist_ok=True)
    # The checkpoint alone says how far the run has come. A line that was written after it, or
    # half written, is of an epoch that will be done again.
    write_metrics(folder / METRICS_NAME, run.history)
    return run


def _is_stale(history: list[EpochMetrics], patience: int | None) -> bool:
    """Whether the lowest test error is `patience` epochs old."""
    if patience is None or not history:
        return False
    errors = [metrics.test_error for metrics in history]
    return len(errors) - 1 - errors.index(min(errors)) >= patience


def _quiet_overflow() -> AbstractContextManager[None]:
    """Let a net that has diverged answer NaN without a warning at each operation."""
    return np.errstate(over="ignore", invalid="ignore")


@contextmanager
def _mode(model: Module, training: bool) -> Iterator[None]:
    """Put all modules into one mode for the length of a block."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


class _CtrlC:
    """Takes note of the first Ctrl-C within a block; the second has its usual effect."""

    pressed = False

    def __enter__(self) -> Self:
        # Python sets signal handlers in the main thread only, and knows those of C as None. A job
        # in the background, which ignores Ctrl-C, is not meant by it.
        previous = signal.getsignal(signal.SIGINT)
        self.previous = signal.default_int_handler if previous is None else previous
        self.active = (
            threading.current_thread() is threading.main_thread() and previous is not signal.SIG_IGN
        )
        if self.active:
            signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *error: object) -> None:
        if self.active:
            signal.signal(signal.SIGINT, self.previous)
