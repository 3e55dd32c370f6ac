"""The command line: ``numbadrop train | predict | bench | info | warmup``.

What a command needs is imported by that command, so that help and a mistyped option are quick.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import io
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from numbadrop.errors import MissingExtraError, UserError, needs_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from numbadrop.data import Dataset
    from numbadrop.train import EpochMetrics
    from numbadrop.train.recipe import Recipe

__all__ = ["main"]

EXIT_USAGE, EXIT_INTERRUPTED = UserError.exit_code, 130

DATA_SETS = ("digits", "mnist", "cifar10", "artificial")
OPTIMIZERS = ("sgd", "nag", "adam", "adamw")
MODELS = ("mlp", "lenet", "deepcnet")
OF_DATA: dict[str, dict[str, Any]] = {"digits": {"epochs": 200}}
"""Defaults where they differ from the rest: an epoch of the digits is 15 steps."""
OF_MODEL: dict[str, dict[str, Any]] = {
    "lenet": {"optimizer": "adam", "lr": 1e-3},
    "deepcnet": {"optimizer": "adam", "lr": 1e-3, "batch_size": 128},
}
DATA_OF_MODEL = {"mlp": "digits", "lenet": "mnist", "deepcnet": "cifar10"}
PATTERNS = ("batchwise", "independent", "none")


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, 1 for training that diverged, 2 for a mistake of the user, 130 after Ctrl-C.
    """
    # A name that the terminal's or the file's encoding lacks is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = vars(_parser().parse_args(argv))
    command = args.pop("command")
    try:
        command(**args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not flush to it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", EXIT_INTERRUPTED)
    return 0


def _fail(message: str, exit_code: int) -> int:
    print(f"numbadrop: {message}", file=sys.stderr)
    return exit_code


# Options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave out the usage, in which the message would be lost."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="numbadrop",
        description="Train neural nets with batchwise dropout on submatrices of their weights.",
    )
    commands = parser.add_subparsers(title="commands", required=True)

    train = commands.add_parser(
        "train",
        help="train a net",
        description="Train a net and measure what dropout does to the time of a step.",
        # Only options that are given are set, so that a resumed run can tell them apart.
        argument_default=argparse.SUPPRESS,
    )
    train.set_defaults(command=_train)
    option = train.add_argument
    option(
        "--data",
        metavar="|".join((*DATA_SETS, "PATH")),
        help="data set: the digits of scikit-learn (default of an mlp), MNIST (of lenet), CIFAR-10 "
        "(of deepcnet), Graham's artificial data, a folder with IDX files of ten classes, an .npz "
        "file with x_train, y_train, x_test, y_test, or images in train/CLASS/ and test/CLASS/ of "
        "a folder or archive",
    )
    option("--data-dir", metavar="DIR", help="folder with the files of MNIST or CIFAR-10; else "
           "they are downloaded once")  # fmt: skip
    option("--validation", type=_count, metavar="N", help="hold out N training samples, always "
           "the same, and test on them instead of on the test set")  # fmt: skip
    option("--recipe", choices=("graham",), help="start from the reference experiment of Graham et "
           "al. for this data set; other options change it")  # fmt: skip
    option("--model", choices=MODELS, help="a multilayer perceptron (default), or a convolutional "
           "net: lenet for images like MNIST's, deepcnet for images like CIFAR-10's")  # fmt: skip
    option("--hidden", type=_counts, metavar="N,N,...", help="hidden units of an mlp (default "
           "800,800)")  # fmt: skip
    option("--pattern", choices=PATTERNS, help="kind of dropout (default batchwise)")
    option("--input-dropout", type=_fraction, metavar="P", help="fraction of inputs dropped by an "
           "mlp (default 0.2)")  # fmt: skip
    option("--dropout", type=_fraction, metavar="P", help="fraction of hidden units dropped; in a "
           "convolutional net, of the last layers (default 0.5)")  # fmt: skip
    option("--optimizer", choices=OPTIMIZERS, help="default nag, of a convolutional net "
           "adam")  # fmt: skip
    option(
        "--lr",
        type=_positive,
        help="learning rate (default sgd 0.02, nag 0.2, adam and adamw 0.001)",
    )
    option("--momentum", type=_fraction, help="of sgd and nag (default 0.9)")
    option("--schedule", metavar="NAME", help="of the learning rate: constant, "
           "exponential[:RATE], cosine (default), step[:EVERY[:FACTOR]]")  # fmt: skip
    option("--augment", metavar="SHIFT[,flip]", help="move training images by up to SHIFT pixels "
           "and mirror half of them; 4,flip suits small colour images (default none)")  # fmt: skip
    option("--batch-size", type=_count, metavar="N", help="default 100, of deepcnet 128")
    option("--epochs", type=_count, metavar="N", help="default 20, for the digits 200")
    option("--patience", type=_count, metavar="N", help="stop when the test error has not improved "
           "for N epochs")  # fmt: skip
    option("--seed", type=_seed, metavar="N", help="of weights, dropout and the order of the "
           "samples (default 0)")  # fmt: skip
    option("--threads", type=_count, metavar="N", help="default: all")
    option("--device", choices=("cpu", "cuda"), help="where to train (default cpu): cuda is an "
           "NVIDIA GPU, and needs numbadrop[cuda]")  # fmt: skip
    option("--output", type=Path, metavar="DIR", help="folder for metrics.jsonl, "
           "checkpoint.safetensors and curve.png")  # fmt: skip
    option("--resume", action="store_true", help="go on with the run in --output, with its "
           "options but --threads and --device, which it does not keep; --epochs, --patience, "
           "--data-dir and a path of --data may be given anew")  # fmt: skip

    predict = commands.add_parser(
        "predict",
        help="print the label of each image in a file",
        description="Print the predicted label of each sample in a file, one a line.",
    )
    predict.set_defaults(command=_predict)
    predict.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a checkpoint, or "
                         "the folder of a run")  # fmt: skip
    predict.add_argument("file", type=Path, metavar="FILE", help="samples: .npy, .npz or IDX; "
                         "whole numbers are scaled as those of the training data")  # fmt: skip
    predict.add_argument("--threads", type=_count, metavar="N", help="default: all")

    bench = commands.add_parser(
        "bench",
        help="measure what dropping units saves on this machine",
        description="Time products and training steps on half of the units and on others, beside "
        "NumPy and, where it is installed, PyTorch. Takes two minutes; leave the machine idle.",
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("--threads", type=_count, metavar="N", help="of all contestants (default: "
                       "all)")  # fmt: skip
    bench.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="draw the speed-up over the "
                       "fraction kept, and the roofline: .png, .svg or .pdf")  # fmt: skip
    bench.add_argument("--quick", action="store_true", help="everything once, on small operands: "
                       "whether it works, not how fast it is")  # fmt: skip

    info = commands.add_parser("info", help="show what this machine and installation offer")
    info.set_defaults(command=_info)

    warmup = commands.add_parser(
        "warmup",
        help="compile what float32 nets with batchwise dropout need, so that they start at once",
    )
    warmup.set_defaults(command=_warmup)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part.strip()) for part in text.split(","))


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number, not negative, got {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positive(text: str) -> float:
    if not 0 < _number(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return float(text)


def _fraction(text: str) -> float:
    if not 0 <= _number(text) < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), got {text!r}")
    return float(text)


# Commands


def _train(
    output: Path | None = None,
    resume: bool = False,
    threads: int | None = None,
    device: str = "cpu",
    patience: int | None = None,
    **options: Any,
) -> None:
    from numbadrop.train import evaluate, fit
    from numbadrop.train.recipe import Recipe, augmentation_from, schedule_from
    from numbadrop.train.timing import step_times
    from numbadrop.train.warmup import warm_up, warm_up_net

    threads = _set_threads(threads)
    config = _resumed_config(output, options) if resume else _new_config(options)
    if patience is None:
        patience = config.get("patience")
    config["patience"] = patience
    recipe = Recipe.from_dict(config["recipe"])
    try:
        schedule = schedule_from(recipe.schedule, recipe.epochs)
    except ValueError as error:
        raise UserError(f"--schedule: {error}") from error
    data = _load_data(config)
    try:
        augmentation = augmentation_from(recipe.augment)
        # Here for its errors only, which belong to the option.
        data.minibatches(recipe.batch_size, augmentation=augmentation)
    except ValueError as error:
        raise UserError(f"--augment: {error}") from error
    try:
        model, optimizer = recipe.build(data.features, data.classes, data.image_shape)
    except ValueError as error:
        raise UserError(f"{data.name}: {error}") from error
    model.to(device)
    where = f"{threads} threads" if device == "cpu" else "on a GPU"
    print(
        f"{data.name}: {len(data.train_inputs)} training and {len(data.test_inputs)} test samples, "
        f"{data.features} features, {data.classes} classes\n"
        f"{_described(recipe, data)}, {where}",
        flush=True,
    )
    if device == "cuda":
        warm_up_net(recipe, data)
    else:
        warm_up([recipe.optimizer], images=recipe.model != "mlp")
    history = fit(
        model,
        optimizer,
        data,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augmentation=augmentation,
        reduction=recipe.reduction,
        schedule=schedule,
        patience=patience,
        output=output,
        resume=resume,
        config={
            **config,
            "features": data.features,
            "image_shape": data.image_shape,
            "classes": data.classes,
            "divisor": data.divisor,
        },
    )
    top_k = 5 if data.classes > 10 else 1
    result = evaluate(model, data.test_inputs, data.test_labels, divisor=data.divisor, top_k=top_k)
    top = f", top-{top_k} error {result.top_k_error:.2%}" if top_k > 1 else ""
    samples = len(data.test_inputs)
    print(
        f"test error {result.error:.2%} ({round(result.error * samples)} of {samples}){top} after "
        f"{len(history)} epochs with {sum(m.seconds for m in history):.1f} s of training"
    )
    if output is not None:
        _draw_curve(
            output,
            history,
            "no dropout" if recipe.pattern == "none" else f"{recipe.pattern} dropout",
            data.name,
        )
    if recipe.pattern != "none":
        times = step_times(
            {"with": recipe, "without": replace(recipe, pattern="none")}, data, device=device
        )
        print(
            f"time of a step: {times['with']:.2f} ms with {recipe.pattern} dropout, "
            f"{times['without']:.2f} ms for the same net dense: "
            f"{times['without'] / times['with']:.1f} times as long"
        )


def _set_threads(threads: int | None) -> int:
    """Set, if asked for, and return the number of threads."""
    from numbadrop.kernels import get_num_threads, set_num_threads

    if threads is not None:
        try:
            set_num_threads(threads)
        except ValueError as error:
            raise UserError(f"--{error}") from error
    return get_num_threads()


def _new_config(options: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that the options ask for: data set and recipe, JSON."""
    from numbadrop.train.recipe import LEARNING_RATES, Recipe, graham

    config = {name: options.pop(name, None) for name in ("data", "data_dir", "validation")}
    model = options.get("model", "mlp")
    config["data"] = _from_anywhere(config["data"] or DATA_OF_MODEL[model])
    config["data_dir"] = config["data_dir"] and _from_anywhere(config["data_dir"])
    if model != "mlp":
        for name in ("hidden", "input_dropout", "recipe"):
            if name in options:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is for --model mlp, got --model {model}")
    if options.pop("recipe", None) == "graham":
        recipe = graham(config["data"], **options)
        if recipe.optimizer != "nag" and "lr" not in options:
            raise UserError(
                "--recipe graham knows a learning rate for nag alone: give --lr with --optimizer "
                f"{recipe.optimizer}"
            )
    else:
        if "optimizer" in options:
            options.setdefault("lr", LEARNING_RATES[options["optimizer"]])
        defaults = {**OF_MODEL.get(model, {}), **OF_DATA.get(config["data"], {})}
        recipe = Recipe(**{**defaults, **options})
    if "momentum" in options and recipe.optimizer not in ("sgd", "nag"):
        raise UserError(f"--momentum is for sgd and nag, got --optimizer {recipe.optimizer}")
    return {**config, "recipe": recipe.as_dict()}


def _from_anywhere(data: str) -> str:
    """Return the name of a data set, or an absolute path: a run may be resumed elsewhere."""
    return data if data in DATA_SETS else os.path.abspath(data)


def _resumed_config(output: Path | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the run in a folder; options must not contradict it."""
    from numbadrop.train import CHECKPOINT_NAME, load_checkpoint

    if output is None:
        raise UserError("--resume needs --output, the folder of the run")
    path = output / CHECKPOINT_NAME
    config = load_checkpoint(path).config
    recipe = _recipe_in(config, path)
    if "epochs" in options:
        recipe = replace(recipe, epochs=options.pop("epochs"))
    if "data_dir" in options:
        config["data_dir"] = _from_anywhere(options.pop("data_dir"))
    if "data" in options and not {config["data"], options["data"]} & {*DATA_SETS}:
        config["data"] = _from_anywhere(options.pop("data"))  # It may have been moved.
    of_run = {**config, **vars(recipe), "recipe": "graham" if recipe.reference else None}
    for name, value in options.items():
        if of_run[name] != value:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} is {of_run[name]} in the run of {path}, got {value}")
    return {**config, "recipe": recipe.as_dict()}


def _recipe_in(config: dict[str, Any], path: Path) -> Recipe:
    from numbadrop.train.recipe import Recipe

    try:
        return Recipe.from_dict(config["recipe"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say how to build its net: it was not made by numbadrop train"
        ) from error


def _load_data(config: dict[str, Any]) -> Dataset:
    from numbadrop import data

    name, data_dir, count = config["data"], config["data_dir"], config["validation"]
    if data_dir is not None and name not in ("mnist", "cifar10"):
        raise UserError(f"--data-dir is for --data mnist and cifar10, got --data {name}")
    match name:
        case "digits":
            dataset = data.load_digits()
        case "mnist":
            dataset = data.load_mnist(data_dir)
        case "cifar10":
            dataset = data.load_cifar10(data_dir)
        case "artificial":
            dataset = data.artificial()
        case path:
            dataset = data.load_path(path)
    if count is None:
        return dataset
    try:
        return dataset.validation_split(count)
    except ValueError as error:
        raise UserError(f"--validation: {error}") from error


def _described(recipe: Recipe, data: Dataset) -> str:
    from numbadrop.train.models import CONVOLUTIONAL

    if recipe.model == "mlp":
        sizes = "-".join(map(str, (data.features, *recipe.hidden, data.classes)))
        what = f"{recipe.input_dropout:g} of the inputs and {recipe.dropout:g} of the hidden units"
    else:
        net = CONVOLUTIONAL[recipe.model]
        sizes = f"{net.notation}-{data.classes}N"
        what = ", ".join(f"{recipe.dropout * share:g}" for share in net.dropped)
    dropout = "no dropout"
    if recipe.pattern != "none":
        dropout = f"{recipe.pattern} dropout of {what}"
    return (
        f"net {sizes}, {dropout}\n"
        f"{recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), {recipe.reduction} "
        f"loss, batches of {recipe.batch_size}, seed {recipe.seed}"
        f"{'' if recipe.augment == 'none' else f', augmented by {recipe.augment}'}"
    )


def _draw_curve(output: Path, history: list[EpochMetrics], label: str, title: str) -> None:
    from numbadrop.train import plot_curves

    try:
        plot_curves({label: history}, output / "curve.png", title)
    except MissingExtraError as error:  # Not worth failing for, now that the net is trained.
        print(f"no curve.png: {error}", file=sys.stderr)
    print(f"{output} holds {', '.join(sorted(path.name for path in output.iterdir()))}")


def _predict(checkpoint: Path, file: Path, threads: int | None = None) -> None:
    from numbadrop.autograd import no_grad
    from numbadrop.train import CHECKPOINT_NAME, load_checkpoint

    _set_threads(threads)
    if checkpoint.is_dir():
        checkpoint = checkpoint / CHECKPOINT_NAME
    saved = load_checkpoint(checkpoint)
    recipe = _recipe_in(saved.config, checkpoint)
    features = saved.config["features"]
    inputs = _read_samples(file, features, saved.config["divisor"])
    shape = saved.config["image_shape"]
    model, _ = recipe.build(features, saved.config["classes"], shape and tuple(shape))
    saved.restore_model(model)
    model.eval()
    with no_grad():
        for first in range(0, len(inputs), 250):
            labels = model(inputs[first : first + 250]).value.argmax(axis=1)
            print(*labels, sep="\n")


def _read_samples(file: Path, features: int, divisor: float) -> NDArray[Any]:
    """Return float32 samples of shape (samples, features)."""
    import numpy as np

    from numbadrop.data import as_floats, read_idx
    from numbadrop.data.dataset import check_inputs
    from numbadrop.data.files import open_arrays

    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if file.suffix in (".npy", ".npz"):
        arrays = open_arrays(file)
        if len(arrays) != 1 and "x_test" not in arrays:
            raise UserError(f"{file}: must hold one array, or one called x_test, got {[*arrays]}")
        samples = arrays.get("x_test", next(iter(arrays.values())))
    else:
        samples = read_idx(file)
    if samples.ndim < 2 or math.prod(samples.shape[1:]) != features:
        raise UserError(
            f"{file}: must hold samples of {features} numbers, got an array of shape "
            f"{samples.shape}"
        )
    rows = samples.reshape(len(samples), features)
    check_inputs(str(file), rows)
    return as_floats(rows, divisor).astype(np.float32, copy=False)


def _bench(
    threads: int | None = None,
    json: Path | None = None,
    plot: Path | None = None,
    quick: bool = False,
) -> None:
    # Before NumPy is loaded. Threads of OpenBLAS would look for work for 2^28 cycles, on cores that
    # whoever is timed next needs.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    if threads is not None:
        for name in ("OPENBLAS_NUM", "MKL_NUM", "OMP_NUM", "VECLIB_MAXIMUM"):
            os.environ[f"{name}_THREADS"] = str(threads)
    with needs_extra("train", "numbadrop bench"):
        import rich.console

        if plot is not None:  # It shall not be missed after two minutes of measuring.
            import matplotlib  # noqa: F401
    for file in (json, plot):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")
    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot must end in .png, .svg or .pdf, got {plot}")
    _set_threads(threads)
    from numbadrop.bench.report import compare

    console = rich.console.Console()
    report = compare(console, quick)
    report.print_tables(console)
    if json is not None:
        report.write_json(json)
    if plot is not None:
        from numbadrop.bench.plot import plot as draw

        draw(report, plot)


def _info() -> None:
    import platform
    from importlib.metadata import version

    import llvmlite.binding as llvm
    import numba
    import numpy as np

    import numbadrop
    from numbadrop import kernels
    from numbadrop.kernels.elements import CPU, MACHINE
    from numbadrop.train.warmup import described_cache

    features = sorted(name for name, there in llvm.get_host_cpu_features().items() if there)
    lanes = MACHINE.vector_bytes // 4
    lines = {
        "numbadrop": numbadrop.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": f"{numba.__version__}, llvmlite {version('llvmlite')}",
        "cpu": CPU,
        "cpu features": " ".join(features),
        "register tile": f"{MACHINE.name}, {MACHINE.tile_rows}x{MACHINE.tile_vectors * lanes} "
        "float32",
        "threads": f"{kernels.get_num_threads()}, of numbadrop's own crew",
        "cache": described_cache(),
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")


def _warmup() -> None:
    import time

    from numbadrop.train.warmup import described_cache, warm_up

    began = time.perf_counter()
    warm_up(OPTIMIZERS, images=True, verbose=True)
    print(f"ready after {time.perf_counter() - began:.1f} s; cache: {described_cache()}")
