from __future__ import annotations

import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import numbadrop
from numbadrop.data import Augmentation, Dataset, Minibatches, artificial
from numbadrop.errors import DeviceMemoryError, UserError
from numbadrop.nn import (
    Activation,
    BatchNorm1d,
    BatchwiseDropout,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)
from numbadrop.optim import NAG, SGD, Adam
from numbadrop.train import (
    CHECKPOINT_NAME,
    METRICS_NAME,
    Checkpoint,
    CheckpointError,
    DivergedError,
    EpochMetrics,
    TrainingInterrupted,
    atomic,
    error_rate,
    evaluate,
    fit,
    load_checkpoint,
    plot_curves,
    read_metrics,
    save_checkpoint,
    top_k_error,
    train_step,
)
from numbadrop.train.fit import _is_stale
from numbadrop.train.metrics import write_metrics
from numbadrop.train.progress import progress_for
from numbadrop.train.recipe import Recipe, augmentation_from, graham, schedule_from
from numbadrop.train.timing import step_times

pytest.importorskip("safetensors")

DATA = artificial(4, 200, 60, features=20, steps=4, noise=0.1)
# The same as images of 4 x 5 bytes, which give the same floats.
BYTES = replace(
    DATA,
    train_inputs=17 * DATA.train_inputs,
    test_inputs=17 * DATA.test_inputs,
    divisor=17.0,
    image_shape=(4, 5, 1),
)
OPTIMIZERS = {
    "sgd": lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "nag": lambda params: NAG(params, lr=0.3),
    "adam": lambda params: Adam(params, lr=0.003),
}
RUN = {"epochs": 3, "batch_size": 32, "seed": 5, "progress": False}
STEPS = 7  # of an epoch: 200 samples in batches of 32
SCHEDULE = schedule_from("exponential:0.3", epochs=3)


def make(optimizer="nag", dropout=BatchwiseDropout, seed=1):
    layers = [dropout(0.2), Linear(20, 12), ReLU(), dropout(0.5), Linear(12, 4)]
    model = Sequential(*layers).seed(seed)
    return model, OPTIMIZERS[optimizer](model.parameters())


def without_times(history):
    return [metrics[:4] for metrics in history]


def assert_same_checkpoint(left: Path, right: Path):
    """Compare two run folders bit for bit, except for times."""
    one, two = load_checkpoint(left / CHECKPOINT_NAME), load_checkpoint(right / CHECKPOINT_NAME)
    for mine, theirs in ((one.model, two.model), (one.optimizer, two.optimizer)):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert np.asarray(value).tobytes() == np.asarray(theirs[name]).tobytes(), name
    assert one.generators == two.generators
    lines = [read_metrics(folder / METRICS_NAME) for folder in (left, right)]
    assert without_times(lines[0]) == without_times(lines[1])


class TestMetrics:
    @given(
        scores=st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1),
        k=st.integers(1, 5),
        data=st.data(),
    )
    def test_top_k_is_membership_in_the_k_first_of_a_stable_sort(self, scores, k, data):
        scores = np.array(scores, np.float32)
        labels = np.array([data.draw(st.integers(0, 4)) for _ in scores])
        first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        naive = np.mean([label not in row for label, row in zip(labels, first, strict=True)])
        assert top_k_error(scores, labels, k) == naive
        assert error_rate(scores, labels) == np.mean(scores.argmax(axis=1) != labels)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_scores_that_are_nan_are_wrong(self, k):
        scores = np.full((2, 3), np.nan)
        assert top_k_error(scores, np.array([0, 2]), k) == 1

    @pytest.mark.parametrize(
        ("scores", "labels", "k", "message"),
        [
            (np.zeros((2, 3)), np.zeros(3, int), 1, r"got \(2, 3\) and \(3,\)"),
            (np.zeros((0, 3)), np.zeros(0, int), 1, r"got \(0, 3\) and \(0,\)"),
            (np.zeros((2, 3)), np.array([0, 3]), 1, r"labels must be in \[0, 3\), got 0 to 3"),
            (np.zeros((2, 3)), np.array([0, 1]), 4, r"k must be in \[1, 3\], got 4"),
        ],
    )
    def test_bad_input(self, scores, labels, k, message):
        with pytest.raises(ValueError, match=message):
            top_k_error(scores, labels, k)


class TestEvaluate:
    def test_does_not_depend_on_the_batch_size_and_changes_nothing(self):
        model, _ = make()
        model.layers[0].eval()
        before = model.rng.bit_generator.state
        given = model, DATA.test_inputs, DATA.test_labels
        whole = evaluate(*given, divisor=1, top_k=2)
        parts = evaluate(*given, divisor=1, top_k=2, batch_size=7)
        assert parts.error == whole.error
        assert parts.top_k_error == whole.top_k_error <= whole.error
        np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-6)
        assert model.rng.bit_generator.state == before
        assert [layer.training for layer in model.layers] == [False, True, True, True, True]

    @pytest.mark.parametrize(
        ("labels", "top_k", "message"),
        [
            (np.zeros(3, int), 1, r"one entry a sample.*\(3,\)"),
            (np.full(60, 4), 1, r"in \[0, 4\)"),
            (np.zeros(60, int), 9, r"k must be in \[1, 4\], got 9"),
        ],
    )
    def test_bad_input(self, labels, top_k, message):
        with pytest.raises(ValueError, match=message):
            evaluate(make()[0], DATA.test_inputs, labels, divisor=1, top_k=top_k)

    def test_whole_numbers_without_a_divisor(self):
        with pytest.raises(ValueError, match="divisor must be given for inputs of uint8"):
            evaluate(make()[0], DATA.test_inputs, DATA.test_labels)
        floats = DATA.test_inputs.astype(np.float32)
        assert evaluate(make()[0], floats, DATA.test_labels).error > 0

    @pytest.mark.parametrize("kind", [float, bool])
    def test_labels_that_are_no_integers(self, kind):
        with pytest.raises(TypeError, match=f"labels must be integers, got dtype {kind.__name__}"):
            top_k_error(np.ones((2, 3)), np.ones(2, kind), k=2)

    def test_lists(self):
        model, _ = make()
        floats = DATA.test_inputs.astype(np.float32)
        assert evaluate(model, floats, DATA.test_labels.tolist()) == evaluate(
            model, floats, DATA.test_labels
        )

    @pytest.mark.parametrize("size", [0, -1])
    def test_bad_batch_size(self, size):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            evaluate(make()[0], DATA.test_inputs, DATA.test_labels, divisor=1, batch_size=size)


class TestFit:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_learns(self, optimizer):
        model, optimizer = make(optimizer)
        history = fit(model, optimizer, DATA, **{**RUN, "epochs": 80})
        assert history[-1].test_error < 0.05 < 0.5 < history[0].train_error
        assert history[-1].train_loss < history[0].train_loss

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_metrics_of_a_net_that_stands_still(self, reduction, tmp_path):
        model = Sequential(Linear(20, 12), ReLU(), Linear(12, 4)).seed(3)
        optimizer = SGD(model.parameters(), lr=0.0)
        history = fit(model, optimizer, DATA, **RUN, reduction=reduction, output=tmp_path)
        train = evaluate(model, DATA.train_inputs, DATA.train_labels, divisor=1)
        test = evaluate(model, DATA.test_inputs, DATA.test_labels, divisor=1)
        for number, metrics in enumerate(history, 1):
            assert metrics.epoch == number
            np.testing.assert_allclose(metrics.train_loss, train.loss, rtol=1e-6)
            assert metrics.train_error == train.error
            assert metrics.test_error == test.error
            assert 0 < metrics.step_ms_median <= 1e3 * metrics.seconds

    def test_bytes_are_divided_wherever_they_are_drawn(self, tmp_path):
        (model, optimizer), (same, other) = make(), make()
        history = fit(model, optimizer, DATA, **RUN)
        assert without_times(fit(same, other, BYTES, **RUN)) == without_times(history)
        stored = {"divisor": BYTES.divisor, "batch_size": 7}
        left = evaluate(model, DATA.test_inputs, DATA.test_labels, divisor=1, batch_size=7)
        assert left == evaluate(same, BYTES.test_inputs, BYTES.test_labels, **stored)

    def test_augmentation_changes_training(self):
        plain = fit(*make(), BYTES, **RUN)
        changed = fit(*make(), BYTES, **RUN, augmentation=Augmentation(1, flip=True))
        assert plain[0].train_loss != changed[0].train_loss

    def test_files(self, tmp_path):
        folder = tmp_path / "new" / "run"
        seen = []

        def see(metrics):
            assert read_metrics(folder / METRICS_NAME)[-1] == metrics
            assert load_checkpoint(folder / CHECKPOINT_NAME).progress["epoch"] == metrics.epoch
            seen.append(metrics)

        run = {**RUN, "seed": np.int64(RUN["seed"])}
        history = fit(*make(), DATA, **run, output=folder, config={"a": np.int8(1)}, on_epoch=see)
        assert seen == history
        assert sorted(path.name for path in folder.iterdir()) == [CHECKPOINT_NAME, METRICS_NAME]
        lines = (folder / METRICS_NAME).read_text().splitlines()
        assert [list(json.loads(line)) for line in lines] == [
            ["epoch", "train_loss", "train_error", "test_error", "seconds", "step_ms_median"]
        ] * 3
        assert read_metrics(folder / METRICS_NAME) == history
        assert load_checkpoint(folder / CHECKPOINT_NAME).config == {"a": 1}

    @pytest.mark.parametrize(
        ("faults", "error", "message"),
        [
            ({"data": replace(DATA, train_inputs=DATA.train_inputs.astype(float),
                              test_inputs=DATA.test_inputs.astype(float))},
             TypeError, "x must be float32 as weight, got float64"),
            ({"outputs": 3}, ValueError, r"one score for each of 4 classes, gives shape \(60, 3\)"),
            ({"config": {"at": Path("x")}}, TypeError, "config must be JSON: .*Path is not JSON"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_trained_leaves_no_run_behind(self, faults, error, message, tmp_path):
        model = Sequential(Linear(20, faults.pop("outputs", 4)))
        options = {"data": DATA, **RUN, "output": tmp_path / "run", **faults}
        with pytest.raises(error, match=message):
            fit(model, SGD(model.parameters(), lr=0.1), **options)
        assert not (tmp_path / "run").exists()

    def test_a_schedule_that_returns_nothing(self):
        with pytest.raises(ValueError, match=r"lr_scale must be a finite number .*, got None"):
            fit(*make(), DATA, **RUN, schedule=lambda epoch: None)

    def test_schedule_is_asked_before_each_step(self):
        model, optimizer = make()
        asked = []

        def schedule(epoch):
            asked.append(epoch)
            return 0.5

        fit(model, optimizer, DATA, **{**RUN, "epochs": 2}, schedule=schedule)
        np.testing.assert_allclose(asked, np.arange(2 * STEPS) / STEPS)
        assert optimizer.lr_scale == 0.5

    def test_patience(self):
        model, _ = make()
        still = SGD(model.parameters(), lr=0.0)
        history = fit(model, still, DATA, **{**RUN, "epochs": 50}, patience=4)
        assert len(history) == 5

    @pytest.mark.parametrize(
        ("errors", "stale"),
        [
            ([], False),
            ([0.5, 0.4, 0.3, 0.2], False),
            ([0.5, 0.2, 0.3], False),
            ([0.5, 0.2, 0.3, 0.1], False),
            ([0.5, 0.2, 0.3, 0.2], True),
            ([0.2, 0.5, 0.4, 0.3], True),
        ],
    )
    def test_patience_counts_from_the_lowest_error(self, errors, stale):
        history = [EpochMetrics(n, 0.0, 0.0, error, 0.0, 0.0) for n, error in enumerate(errors)]
        assert _is_stale(history, 2) == stale
        assert not _is_stale(history, None)

    @pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signal")
    @pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
    def test_a_signal_that_is_ignored_stays_so(self, handler):
        def schedule(epoch):
            if handler is signal.SIG_IGN:
                signal.raise_signal(signal.SIGINT)
            return 1.0

        before = signal.signal(signal.SIGINT, handler)
        try:
            assert len(fit(*make(), DATA, **RUN, schedule=schedule)) == RUN["epochs"]
            assert signal.getsignal(signal.SIGINT) is handler
        finally:
            signal.signal(signal.SIGINT, before)

    def test_the_mode_of_each_module_is_as_before(self):
        model, optimizer = make()
        model.eval()
        fit(model, optimizer, DATA, **{**RUN, "epochs": 1})
        assert not any(module.training for module in model.modules())

    def test_runs_outside_the_main_thread(self):
        results = []
        thread = threading.Thread(target=lambda: results.append(fit(*make(), DATA, **RUN)))
        thread.start()
        thread.join()
        assert without_times(results[0]) == without_times(fit(*make(), DATA, **RUN))

    def test_bytes_as_inputs_are_what_floats_are(self):
        assert DATA.train_inputs.dtype == np.uint8
        floats = Dataset(
            "floats",
            DATA.train_inputs.astype(np.float32),
            DATA.train_labels,
            DATA.test_inputs.astype(np.float32),
            DATA.test_labels,
            classes=4,
        )
        histories = [fit(*make(), data, **RUN) for data in (DATA, floats)]
        assert without_times(histories[0]) == without_times(histories[1])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": -1}, "epochs must not be negative, got -1"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"patience": 0}, "patience must be at least 1, got 0"),
            ({"seed": -3}, "seed must not be negative, got -3"),
            ({"reduction": "max"}, "reduction must be 'mean' or 'sum', got 'max'"),
            ({"resume": True}, "resume needs output"),
        ],
    )
    def test_bad_input(self, change, message, tmp_path):
        model, optimizer = make()
        before = model.state_dict()
        output = {} if "resume" in change else {"output": tmp_path / "run"}
        with pytest.raises(ValueError, match=message):
            fit(model, optimizer, DATA, **{**RUN, **change}, **output)
        assert not (tmp_path / "run").exists()
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])


class TestDivergence:
    def test_a_loss_that_becomes_nan_keeps_the_last_good_checkpoint(self, tmp_path):
        model, optimizer = make("sgd")

        def explode_in_the_second_epoch(epoch):
            return 1.0 if epoch < 1.5 else 1e30

        with pytest.raises(DivergedError, match=r"epoch 2 after \d of 7.*checkpoint") as error:
            fit(
                model,
                optimizer,
                DATA,
                **RUN,
                output=tmp_path,
                schedule=explode_in_the_second_epoch,
            )
        assert "the training loss is" in str(error.value)
        assert len(read_metrics(tmp_path / METRICS_NAME)) == 1
        healthy = fit(*make("sgd"), DATA, **{**RUN, "epochs": 1}, output=tmp_path / "healthy")
        assert_same_checkpoint(tmp_path, tmp_path / "healthy")
        assert math.isfinite(healthy[0].train_loss)

    def test_the_step_with_the_bad_loss_is_not_taken(self):
        model, optimizer = make()
        poisoned = {}

        def poison_before_the_third_step(epoch):
            if round(epoch * STEPS) == 2:
                model.parameters()[-1].value[...] = np.nan
                poisoned.update(model.state_dict())
            return 1.0

        with pytest.raises(DivergedError, match=r"loss is nan, in epoch 1 after 2 of 7 steps\."):
            fit(model, optimizer, DATA, **RUN, schedule=poison_before_the_third_step)
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, poisoned[name])

    def test_weights_that_blow_up_in_the_last_step_do_not_become_a_checkpoint(self, tmp_path):
        model, optimizer = make("sgd")
        whole = {**RUN, "batch_size": 200, "epochs": 1, "reduction": "sum"}
        message = "not finite, in epoch 1 after 1 of 1 steps; the last good state"
        with pytest.raises(DivergedError, match=message):
            fit(model, optimizer, DATA, **whole, output=tmp_path, schedule=lambda _: 1e39)
        assert load_checkpoint(tmp_path / CHECKPOINT_NAME).is_finite()
        assert read_metrics(tmp_path / METRICS_NAME) == []

    def test_weights_that_are_bad_from_the_start(self, tmp_path):
        model, optimizer = make("sgd")
        model.parameters()[0].value[...] = np.nan
        with pytest.raises(DivergedError, match=r"in epoch 1 after 0 of 7 steps\. A lower"):
            fit(model, optimizer, DATA, **RUN, output=tmp_path)
        assert not (tmp_path / CHECKPOINT_NAME).exists()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folders = {}
    for optimizer in OPTIMIZERS:
        for dropout in (BatchwiseDropout, Dropout):
            folder = tmp_path_factory.mktemp("whole")
            fit(*make(optimizer, dropout), DATA, **RUN, output=folder, schedule=SCHEDULE)
            folders[optimizer, dropout] = folder
    return folders


class TestResume:
    @pytest.mark.parametrize("at", [0, 1, 6, 7, 10, 20])
    @pytest.mark.parametrize("dropout", [BatchwiseDropout, Dropout])
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_after_ctrl_c_in_any_step(self, optimizer, dropout, at, tmp_path, uninterrupted):
        def schedule(epoch):
            if round(epoch * STEPS) == at:
                signal.raise_signal(signal.SIGINT)
            return SCHEDULE(epoch)

        with pytest.raises(TrainingInterrupted, match="ready to resume"):
            fit(*make(optimizer, dropout), DATA, **RUN, output=tmp_path, schedule=schedule)
        saved = load_checkpoint(tmp_path / CHECKPOINT_NAME).progress
        assert saved["epoch"] * STEPS + saved["step"] == at + 1  # the step was finished
        model = make(optimizer, dropout, seed=99)  # what it starts from is replaced
        history = fit(*model, DATA, **RUN, output=tmp_path, schedule=SCHEDULE, resume=True)
        assert [metrics.epoch for metrics in history] == [1, 2, 3]
        assert_same_checkpoint(tmp_path, uninterrupted[optimizer, dropout])

    @pytest.mark.parametrize("at", [3, 6, 12])
    def test_running_statistics_go_on(self, at, tmp_path):
        def make(seed):
            layers = [Linear(20, 12), BatchNorm1d(12), ReLU(), BatchwiseDropout(0.5), Linear(12, 4)]
            model = Sequential(*layers).seed(seed)
            return model, SGD(model.parameters(), lr=0.05, momentum=0.9)

        def schedule(epoch):
            if round(epoch * STEPS) == at:
                signal.raise_signal(signal.SIGINT)
            return SCHEDULE(epoch)

        fit(*make(1), DATA, **RUN, output=tmp_path / "whole", schedule=SCHEDULE)
        with pytest.raises(TrainingInterrupted):
            fit(*make(1), DATA, **RUN, output=tmp_path / "parts", schedule=schedule)
        fit(*make(99), DATA, **RUN, output=tmp_path / "parts", schedule=SCHEDULE, resume=True)
        assert_same_checkpoint(tmp_path / "parts", tmp_path / "whole")
        saved = load_checkpoint(tmp_path / "parts" / CHECKPOINT_NAME).model
        assert (saved["1.running_mean"] != 0).all()

    def test_after_several_interruptions(self, tmp_path, uninterrupted):
        stops = iter([2, 3, 9, 15])
        stop = next(stops)

        def schedule(epoch):
            if round(epoch * STEPS) == stop:
                signal.raise_signal(signal.SIGINT)
            return SCHEDULE(epoch)

        for attempt in range(5):
            run = {**RUN, "output": tmp_path, "resume": attempt > 0, "schedule": schedule}
            if attempt < 4:
                with pytest.raises(TrainingInterrupted):
                    fit(*make(), DATA, **run)
                stop = next(stops, None)
            else:
                fit(*make(), DATA, **run)
        assert_same_checkpoint(tmp_path, uninterrupted["nag", BatchwiseDropout])

    def test_augmented_bytes(self, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        run = {**RUN, "augmentation": Augmentation(1, flip=True)}
        fit(*make(), BYTES, **run, output=whole)

        def schedule(epoch):
            if round(epoch * STEPS) == 9:
                signal.raise_signal(signal.SIGINT)
            return 1.0

        with pytest.raises(TrainingInterrupted):
            fit(*make(), BYTES, **run, output=parts, schedule=schedule)
        fit(*make(), BYTES, **run, output=parts, resume=True)
        assert_same_checkpoint(parts, whole)

    def test_to_more_epochs(self, tmp_path, uninterrupted):
        short = {**RUN, "epochs": 2}
        fit(*make(), DATA, **short, output=tmp_path, schedule=SCHEDULE)
        fit(*make(), DATA, **RUN, output=tmp_path, schedule=SCHEDULE, resume=True)
        assert_same_checkpoint(tmp_path, uninterrupted["nag", BatchwiseDropout])

    @pytest.mark.parametrize("inactive", ["frozen", "catch_up"])
    def test_images(self, inactive, tmp_path):
        class Images(Module):
            def __call__(self, x, units=None):
                return Activation.of(Activation.of(x).value.reshape(-1, 4, 5, 1))

        def start(seed=1):
            layers = [Images(), Conv2d(1, 8, 3, padding=1), ReLU(), BatchwiseDropout(0.5)]
            layers += [Conv2d(8, 6, (2, 3)), ReLU(), Flatten(), Linear(54, 4)]
            model = Sequential(*layers).seed(seed)
            return model, NAG(model.parameters(), lr=0.05, inactive=inactive)

        fit(*start(), DATA, **RUN, output=tmp_path / "whole")
        fit(*start(), DATA, **{**RUN, "epochs": 1}, output=tmp_path / "part")
        fit(*start(99), DATA, **RUN, output=tmp_path / "part", resume=True)
        assert_same_checkpoint(tmp_path / "part", tmp_path / "whole")

    def test_a_finished_run_stays_as_it_is(self, tmp_path):
        history = fit(*make(), DATA, **RUN, output=tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert fit(*make(), DATA, **RUN, output=tmp_path, resume=True) == history
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_cuts_the_metrics_back_to_the_checkpoint(self, tmp_path, uninterrupted):
        fit(*make(), DATA, **{**RUN, "epochs": 2}, output=tmp_path, schedule=SCHEDULE)
        with (tmp_path / METRICS_NAME).open("a") as file:
            file.write('{"epoch": 3, "train_loss": 0.0, "train_error": 0.0, "test_')
        fit(*make(), DATA, **RUN, output=tmp_path, schedule=SCHEDULE, resume=True)
        assert_same_checkpoint(tmp_path, uninterrupted["nag", BatchwiseDropout])

    @pytest.fixture
    def default_handler(self):
        """What a shell that starts the tests in the background does not leave in place."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield signal.default_int_handler
        signal.signal(signal.SIGINT, before)

    def test_a_second_ctrl_c_does_not_wait(self, default_handler):
        def schedule(epoch):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second signal must have interrupted")

        with pytest.raises(KeyboardInterrupt) as interrupt:
            fit(*make(), DATA, **RUN, schedule=schedule)
        assert not isinstance(interrupt.value, TrainingInterrupted)
        assert signal.getsignal(signal.SIGINT) is default_handler

    def test_without_output_ctrl_c_still_finishes_the_step(self):
        model, optimizer = make("adam")

        def schedule(epoch):
            signal.raise_signal(signal.SIGINT)
            return 1.0

        with pytest.raises(TrainingInterrupted, match=r"in epoch 1 after 1 of 7 steps$"):
            fit(model, optimizer, DATA, **RUN, schedule=schedule)
        assert optimizer.state_dict()["0.steps"] == 1

    def test_another_run_is_not_overwritten(self, tmp_path):
        fit(*make(), DATA, **RUN, output=tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(CheckpointError, match=f"{CHECKPOINT_NAME} exists already"):
            fit(*make(), DATA, **RUN, output=tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_nothing_to_resume(self, tmp_path):
        with pytest.raises(CheckpointError, match=f"{tmp_path / CHECKPOINT_NAME}: no such file"):
            fit(*make(), DATA, **RUN, output=tmp_path, resume=True)

    @pytest.mark.parametrize(
        ("change", "optimizer", "message"),
        [
            ({"seed": 6}, "nag", "another run: seed 5 there, 6 here"),
            ({"batch_size": 50}, "nag", "another run: batch_size 32 there, 50 here"),
            (
                {"augmentation": Augmentation(1)},
                "nag",
                r"another run: augmentation None there, \{'shift': 1, 'flip': False\} here",
            ),
            ({"reduction": "sum"}, "nag", "another run: reduction 'mean' there, 'sum' here"),
            ({}, "sgd", "another run: optimizer 'NAG' there, 'SGD' here"),
            ({"data": BYTES.validation_split(40)}, "nag", "run: samples 200 there, 160 here"),
        ],
    )
    def test_another_run(self, change, optimizer, message, tmp_path):
        fit(*make(), BYTES, **{**RUN, "epochs": 1}, output=tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(CheckpointError, match=message):
            fit(*make(optimizer), **{"data": BYTES, **RUN, **change}, output=tmp_path, resume=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


KILLED_RUN = """
import os, signal, sys
sys.path[:0] = sys.argv[3:]
from numbadrop.train import fit
from numbadrop.train.metrics import _line
from test_train import DATA, RUN, SCHEDULE, make

stage, folder = sys.argv[1:3]
fit_module = sys.modules["numbadrop.train.fit"]
schedule = SCHEDULE

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def half_write_and_die(file):
    os.ftruncate(file, os.fstat(file).st_size // 2)
    die()

def half_append_and_die(path, metrics):
    with path.open("ab") as file:
        file.write(_line(metrics)[:50])
    die()

def in_call(number, action, original):
    calls = 0
    def counting(*args):
        nonlocal calls
        calls += 1
        return action(*args) if calls == number else original(*args)
    return counting

# First the empty metrics and the first checkpoint are written, then a checkpoint an epoch; each
# write renames one file and syncs two.
match stage:
    case "while writing a checkpoint":
        os.fsync = in_call(7, half_write_and_die, os.fsync)
    case "before renaming a checkpoint":
        os.replace = in_call(4, die, os.replace)
    case "after renaming a checkpoint":
        fit_module.append_metrics = die
    case "in the middle of a metrics line":
        fit_module.append_metrics = in_call(2, half_append_and_die, fit_module.append_metrics)
    case "between checkpoints":
        schedule = lambda epoch: SCHEDULE(epoch) if epoch < 2.4 else die()
fit(*make(), DATA, **RUN, output=folder, schedule=schedule)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
class TestKilled:
    @pytest.mark.parametrize(
        ("stage", "epochs_kept"),
        [
            ("while writing a checkpoint", 1),
            ("before renaming a checkpoint", 1),
            ("after renaming a checkpoint", 1),
            ("in the middle of a metrics line", 2),
            ("between checkpoints", 2),
        ],
    )
    def test_resumes_as_if_nothing_had_happened(self, stage, epochs_kept, tmp_path, uninterrupted):
        paths = [str(Path(__file__).parent), str(Path(numbadrop.__file__).parents[1])]
        run = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, stage, str(tmp_path), *paths],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert load_checkpoint(tmp_path / CHECKPOINT_NAME).progress["epoch"] == epochs_kept
        fit(*make(), DATA, **RUN, output=tmp_path, schedule=SCHEDULE, resume=True)
        assert_same_checkpoint(tmp_path, uninterrupted["nag", BatchwiseDropout])
        assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT_NAME, METRICS_NAME]


class TestCheckpoint:
    @pytest.fixture
    def saved(self, tmp_path):
        model, optimizer = make("adam")
        fit(model, optimizer, DATA, **{**RUN, "epochs": 1})
        path = tmp_path / "a.safetensors"
        save_checkpoint(path, Checkpoint.capture(model, optimizer, {"epoch": 1}, {"hidden": [12]}))
        return path

    @pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
    def test_round_trip_with_any_generator(self, kind, tmp_path):
        bit_generator = getattr(np.random, kind)
        model, optimizer = make()
        model.seed(np.random.Generator(bit_generator(3)))
        model.rng.random(5, np.float32)  # leaves half of a 64-bit draw for later
        path = tmp_path / "a.safetensors"
        save_checkpoint(path, Checkpoint.capture(model, optimizer, {}, {}))
        expected = model.rng.random(9)

        other, other_optimizer = make()
        other.seed(np.random.Generator(bit_generator(4)))
        load_checkpoint(path).restore(other, other_optimizer)
        np.testing.assert_array_equal(other.rng.random(9), expected)
        for name, value in other.state_dict().items():
            np.testing.assert_array_equal(value, model.state_dict()[name])

    def test_content(self, saved):
        checkpoint = load_checkpoint(saved)
        assert checkpoint.progress == {"epoch": 1}
        assert checkpoint.config == {"hidden": [12]}
        assert checkpoint.optimizer["0.steps"] == STEPS

    def test_is_plain_safetensors(self, saved):
        from safetensors.numpy import load_file

        tensors = load_file(saved)
        np.testing.assert_array_equal(
            tensors["model.1.weight"], load_checkpoint(saved).model["1.weight"]
        )

    def test_truncated_anywhere(self, saved):
        content = saved.read_bytes()
        lengths = {*range(16), *range(16, len(content), 61), len(content) - 1}
        for length in sorted(lengths):
            saved.write_bytes(content[:length])
            with pytest.raises(CheckpointError, match=f"{saved}: truncated or damaged"):
                load_checkpoint(saved)

    @pytest.mark.parametrize("flip", [0x01, 0x80])
    def test_a_flipped_bit_anywhere(self, saved, flip):
        content = saved.read_bytes()
        for position in [*range(64), *range(64, len(content), 11)]:
            damaged = bytearray(content)
            damaged[position] ^= flip
            saved.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=f"{saved}: "):
                load_checkpoint(saved)

    def test_too_long(self, saved):
        saved.write_bytes(saved.read_bytes() + b"\0")
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_checkpoint(saved)

    def test_another_safetensors_file(self, tmp_path):
        from safetensors.numpy import save_file

        path = tmp_path / "other.safetensors"
        save_file({"weight": np.zeros(3)}, path)
        with pytest.raises(CheckpointError, match=f"{path}: not a checkpoint of numbadrop.*no key"):
            load_checkpoint(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"config": None}, "no 'config' of type dict in its metadata"),
            ({"generators": {}}, "no 'generators' of type list in its metadata"),
            ({"format_version": 2}, "format version 2, this version of numbadrop reads 1"),
        ],
    )
    def test_wrong_key(self, saved, change, message):
        from safetensors import safe_open
        from safetensors.numpy import load_file, save_file

        from numbadrop.train.checkpoint import METADATA_KEY, _checksum

        with safe_open(saved, "numpy") as file:
            content = json.loads(file.metadata()[METADATA_KEY])
        text = json.dumps({**content, **change})
        tensors = load_file(saved)
        save_file(tensors, saved, {METADATA_KEY: text, "checksum": _checksum(tensors, text)})
        with pytest.raises(CheckpointError, match=f"{saved}: {message}"):
            load_checkpoint(saved)

    def test_progress_of_no_run(self, saved, tmp_path):
        saved.rename(tmp_path / CHECKPOINT_NAME)
        with pytest.raises(CheckpointError, match="no progress of a run in it"):
            fit(*make("adam"), DATA, **RUN, output=tmp_path, resume=True)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ((Linear(20, 13), ReLU(), Linear(13, 4)), r"lacks 0\.weight"),
            (
                (BatchwiseDropout(0.2), Linear(20, 12), ReLU(), ReLU(), Linear(12, 5)),
                r"4\.weight.*float32 of shape \(12, 5\), got float32 of shape \(12, 4\)",
            ),
            (
                (
                    BatchwiseDropout(0.2),
                    Linear(20, 12, dtype=np.float64),
                    ReLU(),
                    BatchwiseDropout(0.5),
                    Linear(12, 4, dtype=np.float64),
                ),
                r"1\.weight.*must be float64",
            ),
        ],
    )
    def test_another_architecture_changes_nothing(self, saved, layers, message):
        model = Sequential(*layers).seed(2)
        optimizer = Adam(model.parameters())
        before = Checkpoint.capture(model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match=f"{saved} is of another architecture.*{message}"):
            load_checkpoint(saved).restore(model, optimizer)
        self.assert_unchanged(model, optimizer, before)

    def test_another_optimizer_changes_nothing(self, saved):
        model, optimizer = make("nag")
        before = Checkpoint.capture(model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match=f"{saved} is of another optimizer: .*slots"):
            load_checkpoint(saved).restore(model, optimizer)
        self.assert_unchanged(model, optimizer, before)

    def test_an_error_of_another_kind_changes_nothing(self, saved, monkeypatch):
        model, optimizer = make("adam")
        before = Checkpoint.capture(model, optimizer, {}, {})

        def full(self, state):
            raise DeviceMemoryError("the memory is full")

        monkeypatch.setattr(type(optimizer), "load_state_dict", full)
        with pytest.raises(DeviceMemoryError, match="the memory is full"):
            load_checkpoint(saved).restore(model, optimizer)
        self.assert_unchanged(model, optimizer, before)

    def test_other_generators_change_nothing(self, saved):
        layers = [BatchwiseDropout(0.2), Linear(20, 12), ReLU(), BatchwiseDropout(0.5)]
        model = Sequential(*layers, Linear(12, 4))  # unseeded: a generator a layer
        optimizer = Adam(model.parameters())
        before = Checkpoint.capture(model, optimizer, {}, {})
        with pytest.raises(CheckpointError, match="seed the model as it was for the run"):
            load_checkpoint(saved).restore(model, optimizer)
        self.assert_unchanged(model, optimizer, before)

    @staticmethod
    def assert_unchanged(model, optimizer, before):
        now = Checkpoint.capture(model, optimizer, {}, {})
        for mine, theirs in ((now.model, before.model), (now.optimizer, before.optimizer)):
            for name, value in mine.items():
                np.testing.assert_array_equal(value, theirs[name])
        assert now.generators == before.generators

    @pytest.mark.parametrize("fault", ["fsync", "replace"])
    def test_a_failed_write_leaves_the_old_file(self, saved, fault, monkeypatch):
        content = saved.read_bytes()

        def fail(*args):
            raise OSError("disk full")

        monkeypatch.setattr(os, fault, fail)
        model, optimizer = make()
        with pytest.raises(OSError, match="disk full"):
            save_checkpoint(saved, Checkpoint.capture(model, optimizer, {}, {}))
        assert saved.read_bytes() == content


class TestReadMetrics:
    LINE = EpochMetrics(1, 0.5, 0.25, 0.25, 2.0, 3.0)

    def test_a_line_that_was_not_finished(self, tmp_path):
        write_metrics(tmp_path / "metrics", [self.LINE] * 2)
        whole = (tmp_path / "metrics").read_bytes()
        (tmp_path / "metrics").write_bytes(whole[:-9])
        assert read_metrics(tmp_path / "metrics") == [self.LINE]
        (tmp_path / "metrics").write_bytes(whole[:-1])  # as an editor may leave it
        assert read_metrics(tmp_path / "metrics") == [self.LINE] * 2

    @pytest.mark.parametrize("damage", [b"{", b"[]", b'{"epoch": 1}', b"\n", b"\xff"])
    def test_damage(self, damage, tmp_path):
        write_metrics(tmp_path / "metrics", [self.LINE])
        with (tmp_path / "metrics").open("ab") as file:
            file.write(damage + b"\n")
        with pytest.raises(UserError, match="metrics, line 2: no metrics of an epoch"):
            read_metrics(tmp_path / "metrics")


class TestFilesThatOthersHold:
    """As a virus scanner or a spreadsheet does on Windows."""

    @pytest.fixture
    def windows(self, monkeypatch):
        """Return the pauses of a system where the first `refusals` changes of a file fail."""

        def make(refusals):
            pauses = []

            def replace(source, target):
                if len(pauses) < refusals:
                    raise PermissionError(13, "Access is denied")
                os.replace(source, target)

            system = SimpleNamespace(name="nt", replace=replace, fsync=os.fsync)
            monkeypatch.setattr(atomic, "os", system)
            monkeypatch.setattr(atomic, "time", SimpleNamespace(sleep=pauses.append))
            return pauses

        return make

    def test_for_a_moment(self, windows, tmp_path):
        pauses = windows(refusals=3)
        atomic.write_atomically(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert len(pauses) == 3

    def test_for_long(self, windows, tmp_path):
        windows(refusals=100)
        (tmp_path / "file").write_bytes(b"old")
        with pytest.raises(PermissionError, match="Access is denied"):
            atomic.write_atomically(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="folders are synchronized there alone")
def test_a_folder_that_cannot_be_synchronized(monkeypatch, tmp_path):
    """As on some file systems that are shared with a virtual machine."""
    synchronize = os.fsync

    def files_alone(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    atomic.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_program_without_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with progress_for(epochs=1, steps=1):
        pass


class TestRecipe:
    def test_graham_is_the_reference_under_our_scaling(self, monkeypatch):
        """Train beside a NumPy net that scales nothing, in float64, with the rates of the paper."""
        patterns = []
        draw = BatchwiseDropout.draw

        def recording(self, within):
            pattern = draw(self, within)
            patterns.append(pattern.units.indices)
            return pattern

        monkeypatch.setattr(BatchwiseDropout, "draw", recording)
        recipe = graham("mnist", hidden=(16, 8), epochs=1, seed=4)
        assert (recipe.input_dropout, recipe.dropout) == (0.2, 0.5)
        model, optimizer = recipe.build(20, 4)
        kept = (0.8, 0.5, 0.5)
        linears = [layer for layer in model.layers if isinstance(layer, Linear)]
        assert (linears[2].weight.value == 0).all()
        weights = [layer.weight.value / p for layer, p in zip(linears, kept, strict=True)]
        for w, layer in zip(weights[:2], linears, strict=False):
            bound = len(w) ** -0.5
            assert 0.9 * bound < np.abs(w).max() <= bound
            assert (layer.bias.value == 0).all()
        weights = [w.astype(np.float64) for w in weights]
        biases = [np.zeros(w.shape[1]) for w in weights]
        momenta = [np.zeros_like(w) for w in weights], [np.zeros_like(b) for b in biases]
        mu, lr = 0.9, 0.01

        rng = np.random.default_rng(0)
        for _ in range(12):
            x = rng.random((30, 20), np.float32)
            y = rng.integers(4, size=30)
            patterns.clear()
            train_step(model, optimizer, x, y, recipe.reduction)
            units = [*patterns, np.arange(4)]

            active = [np.ix_(units[i], units[i + 1]) for i in range(3)]
            hidden = [x[:, units[0]].astype(np.float64)]
            for i in range(3):
                z = hidden[-1] @ weights[i][active[i]] + biases[i][units[i + 1]]
                hidden.append(np.maximum(z, 0) if i < 2 else z)
            g = np.exp(hidden[3]) / np.exp(hidden[3]).sum(axis=1, keepdims=True)
            g[np.arange(30), y] -= 1
            for i in (2, 1, 0):
                steps = (
                    (weights[i], momenta[0][i], active[i], hidden[i].T @ g),
                    (biases[i], momenta[1][i], units[i + 1], g.sum(axis=0)),
                )
                g = g @ weights[i][active[i]].T * (hidden[i] > 0)
                for w, m, block, gradient in steps:
                    w[block] -= mu * m[block]
                    m[block] = mu * m[block] - lr * (1 - mu) * gradient
                    w[block] += (1 + mu) * m[block]
        for layer, w, b, p in zip(linears, weights, biases, kept, strict=True):
            np.testing.assert_allclose(layer.weight.value / p, w, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(layer.bias.value, b, rtol=2e-4, atol=2e-5)

    def test_without_dropout_graham_scales_nothing(self):
        recipe = graham("artificial", pattern="none", hidden=(16,), seed=1)
        _, optimizer = recipe.build(8, 3)
        assert [group["lr"] for group in optimizer.param_groups] == [0.001] * 3

    @given(
        hidden=st.lists(st.integers(1, 9), max_size=3),
        pattern=st.sampled_from(["batchwise", "independent", "none"]),
        optimizer=st.sampled_from(["sgd", "nag", "adam", "adamw"]),
        dropout=st.sampled_from([0.0, 0.5]),
    )
    def test_survives_json_and_builds(self, hidden, pattern, optimizer, dropout):
        recipe = Recipe(
            hidden=tuple(hidden), pattern=pattern, optimizer=optimizer, dropout=dropout, lr=0.01
        )
        again = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict())))
        assert again == recipe
        model, _ = again.build(5, 3)
        kinds = [type(layer).__name__ for layer in model.layers]
        assert kinds.count("Linear") == len(hidden) + 1
        dropped = {"batchwise": "BatchwiseDropout", "independent": "Dropout", "none": "-"}[pattern]
        assert kinds.count(dropped) == (pattern != "none") * (1 + len(hidden) * (dropout > 0))

    @pytest.mark.parametrize("optimizer", ["sgd", "nag", "adam", "adamw"])
    def test_the_optimizer_has_its_options(self, optimizer):
        recipe = Recipe(hidden=(3,), optimizer=optimizer, lr=0.0123, momentum=0.7)
        for group in recipe.build(5, 3)[1].param_groups:
            assert group["lr"] == 0.0123
            assert group.get("momentum", 0.7) == 0.7

    @pytest.mark.parametrize(
        ("pattern", "of_channels", "of_units"),
        [("batchwise", BatchwiseDropout, BatchwiseDropout), ("independent", Dropout2d, Dropout)],
    )
    def test_where_a_convolutional_net_drops(self, pattern, of_channels, of_units):
        model, _ = Recipe(model="lenet", pattern=pattern, dropout=0.4).build(784, 10, (28, 28, 1))
        found = [(type(x), getattr(x, "p", None)) for x in model.layers if type(x) is not LeakyReLU]
        assert found[2:] == [  # behind the layers that make images of the input
            (Conv2d, None),
            (MaxPool2d, None),
            (Conv2d, None),
            (MaxPool2d, None),
            (of_channels, 0.2),
            (Flatten, None),
            (Linear, None),
            (of_units, 0.4),
            (Linear, None),
        ]

    @pytest.mark.parametrize("model", ["mlp", "lenet"])
    def test_an_unknown_pattern_is_refused(self, model):
        with pytest.raises(ValueError, match=r"pattern must be one of .* got 'batchwize'"):
            Recipe(model=model, pattern="batchwize").build(784, 10, (28, 28, 1))

    @pytest.mark.parametrize(("model", "shape"), [("lenet", (3, 9, 1)), ("deepcnet", (7, 8, 3))])
    def test_images_that_are_too_small(self, model, shape):
        with pytest.raises(ValueError, match=r"are too small for .*MP2"):
            Recipe(model=model).build(math.prod(shape), 10, shape)

    @pytest.mark.parametrize(
        "text", ["", "linear", "constant:1", "cosine:3", "exponential:x", "step:1:2:3", "step:0"]
    )
    def test_bad_schedule(self, text):
        with pytest.raises(ValueError, match="must be"):
            schedule_from(text, epochs=9)

    @pytest.mark.parametrize(
        ("text", "augmentation"),
        [
            ("none", None),
            ("2", Augmentation(2)),
            ("0,flip", Augmentation(0, flip=True)),
            ("4,flip", Augmentation(4, flip=True)),
        ],
    )
    def test_augmentation(self, text, augmentation):
        assert augmentation_from(text) == augmentation

    @pytest.mark.parametrize("text", ["", "flip", "-1", "2.5", "4,", "4,turn", "4,flip,flip"])
    def test_bad_augmentation(self, text):
        message = f"augment must be none or SHIFT[,flip], such as 4,flip, got {text!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            augmentation_from(text)


class TestPictures:
    @pytest.mark.parametrize("epochs", [1, 40])
    def test_curve(self, epochs, tmp_path):
        pytest.importorskip("matplotlib")
        history = [
            EpochMetrics(n, 1.0, 1 / n, max(0, 0.2 - n / 100), 1.0, 1.0)
            for n in range(1, epochs + 1)
        ]
        path = tmp_path / "curve.png"
        plot_curves({"batchwise": history, "none": history[:1]}, path, "title")
        assert path.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("epochs", [1, 3, 20])
    def test_no_tick_is_between_two_epochs(self, epochs, tmp_path, monkeypatch):
        figure = pytest.importorskip("matplotlib.figure")
        drawn = []
        monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        history = [EpochMetrics(n, 1.0, 1 / n, 1 / n, 1.0, 1.0) for n in range(1, epochs + 1)]
        plot_curves({"none": history}, tmp_path / "curve.png")
        ticks = drawn[0].axes[0].get_xticks()
        assert len(ticks) > 0
        np.testing.assert_array_equal(ticks, np.round(ticks))

    def test_what_is_drawn(self, tmp_path, monkeypatch):
        figure = pytest.importorskip("matplotlib.figure")
        drawn = []
        monkeypatch.setattr(figure.Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        history = [EpochMetrics(n, 1.0, 0.1 / n, 0.5 / n, 30.0, 1.0) for n in (1, 2)]
        plot_curves({"none": history}, tmp_path / "curve.png", over=("epochs", "time"))
        for axes, places in zip(drawn[0].axes, ([1, 2], [0.5, 1.0]), strict=True):
            lines = {line.get_label().split(" (")[0]: line for line in axes.lines}
            for name, errors in (("none, test", [50, 25]), ("none, train", [10, 5])):
                np.testing.assert_allclose(lines[name].get_xdata(), places)
                np.testing.assert_allclose(lines[name].get_ydata(), errors)

    def test_a_panel_for_epochs_and_one_for_time(self, tmp_path):
        image = pytest.importorskip("matplotlib.image")
        history = [EpochMetrics(n, 1.0, 1 / n, 1 / n, 30.0, 1.0) for n in range(1, 5)]
        sizes = []
        for over in (("epochs",), ("epochs", "time")):
            plot_curves({"none": history}, tmp_path / "curve.png", over=over)
            sizes.append(image.imread(tmp_path / "curve.png").shape[1])
        assert sizes[1] > 1.5 * sizes[0]


def test_step_times():
    recipe = Recipe(hidden=(8,), batch_size=20)
    times = step_times({"a": recipe, "b": Recipe(hidden=(8,), pattern="none")}, DATA, rounds=3)
    assert times.keys() == {"a", "b"}
    assert all(0 < ms < 1000 for ms in times.values())


def test_minibatch_order_is_not_the_models_stream():
    model, _ = make(seed=0)
    order = Minibatches(DATA.train_inputs, DATA.train_labels, 10, seed=0).order(0)
    assert order.tolist() != np.random.default_rng(0).permutation(200).tolist()
    assert model.rng.bit_generator.state != np.random.default_rng(0).bit_generator.state
