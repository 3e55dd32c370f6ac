from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import numbadrop
from numbadrop import cli
from numbadrop.data import artificial, load_digits
from numbadrop.train import (
    CHECKPOINT_NAME,
    METRICS_NAME,
    load_checkpoint,
    read_metrics,
    warmup,
)

pytest.importorskip("safetensors")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(
        [str(Path(numbadrop.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    ),
}
COMMAND = [sys.executable, "-m", "numbadrop"]
SMALL = ["--hidden", "12", "--batch-size", "30", "--schedule", "constant"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    made = artificial(4, 200, 60, features=20, steps=4, noise=0.1)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        x_train=made.train_inputs.astype(np.float32),
        y_train=made.train_labels,
        x_test=made.test_inputs.astype(np.float32),
        y_test=made.test_labels,
    )
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a folder of colour images of 4 x 5 pixels."""
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    for name in [
        f"{part}/{label}/{n}" for part in ("train", "test") for label in "abc" for n in range(9)
    ]:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(4, 5, 3), dtype=np.uint8)).save(path)
    return folder


def run(*args):
    """Run a command in this process; return its exit code."""
    try:
        return cli.main([str(arg) for arg in args])
    except SystemExit as stop:
        return stop.code


def same_run(left, right):
    one, two = load_checkpoint(left / CHECKPOINT_NAME), load_checkpoint(right / CHECKPOINT_NAME)
    for mine, theirs in ((one.model, two.model), (one.optimizer, two.optimizer)):
        for name, value in mine.items():
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert one.generators == two.generators
    metrics = [read_metrics(folder / METRICS_NAME) for folder in (left, right)]
    assert [m[:4] for m in metrics[0]] == [m[:4] for m in metrics[1]]


class TestTrain:
    def test_with_no_arguments_but_quick(self, capsys):
        assert run("train", "--hidden", "16", "--epochs", "2") == 0
        out, err = capsys.readouterr()
        assert "digits: 1438 training and 359 test samples, 64 features, 10 classes" in out
        assert re.search(r"^epoch 2/2  loss \d\.\d+ .* test error +\d+\.\d+%", out, re.M)
        assert re.search(r"^test error \d+\.\d+% \(\d+ of 359\) after 2 epochs", out, re.M)
        assert re.search(
            r"\d ms with batchwise dropout, \d+\.\d+ ms for the same net dense.*\n$", out
        )
        assert "Traceback" not in err

    def test_data_in_float64(self, npz, tmp_path):
        path = tmp_path / "double.npz"
        with np.load(npz) as arrays:
            np.savez(path, **{k: a.astype(float) if k[0] == "x" else a for k, a in arrays.items()})
        assert run("train", "--data", path, *SMALL, "--epochs", 1) == 0

    def test_output(self, npz, tmp_path, capsys):
        folder = tmp_path / "run"
        assert run("train", "--data", npz, *SMALL, "--epochs", 3, "--output", folder) == 0
        names = [CHECKPOINT_NAME, "curve.png", METRICS_NAME]
        assert sorted(path.name for path in folder.iterdir()) == names
        assert len(read_metrics(folder / METRICS_NAME)) == 3
        assert f"{folder} holds {', '.join(names)}" in capsys.readouterr().out

    @pytest.mark.parametrize("pattern", ["batchwise", "independent", "none"])
    @pytest.mark.parametrize("optimizer", ["sgd", "nag", "adam", "adamw"])
    def test_patterns_and_optimizers_learn(self, pattern, optimizer, npz, tmp_path):
        options = ["--pattern", pattern, "--optimizer", optimizer, "--dropout", 0.1]
        folder = tmp_path / "run"
        assert (
            run("train", "--data", npz, *SMALL, *options, "--epochs", 30, "--output", folder) == 0
        )
        history = read_metrics(folder / METRICS_NAME)
        assert history[-1].train_loss < 0.5 * history[0].train_loss

    def test_seed_decides_everything(self, npz, tmp_path):
        folders = [tmp_path / name for name in "abc"]
        for folder, seed in zip(folders, (3, 3, 4), strict=True):
            run("train", "--data", npz, *SMALL, "--epochs", 2, "--seed", seed, "--output", folder)
        same_run(folders[0], folders[1])
        first, other = (load_checkpoint(f / CHECKPOINT_NAME).model for f in folders[1:])
        assert any((first[name] != other[name]).any() for name in first)

    def test_threads_do_not_change_the_result(self, npz, tmp_path):
        folders = [tmp_path / name for name in "ab"]
        wide = ["--hidden", "300,300", "--batch-size", 100]
        threads = numbadrop.kernels.get_num_threads()
        try:
            for folder, count in zip(folders, (1, 2), strict=True):
                options = ["--threads", count, "--output", folder, "--epochs", 2]
                assert run("train", "--data", npz, *SMALL, *wide, *options) == 0
        finally:
            numbadrop.kernels.set_num_threads(threads)
        same_run(*folders)

    def test_validation_holds_out_training_samples(self, npz, tmp_path, capsys):
        assert run("train", "--data", npz, *SMALL, "--epochs", 1, "--validation", 50) == 0
        assert "150 training and 50 test samples" in capsys.readouterr().out

    def test_patience(self, npz, capsys):
        options = ["--lr", "1e-30", "--epochs", 50, "--patience", 3]
        assert run("train", "--data", npz, *SMALL, *options) == 0
        assert "after 4 epochs" in capsys.readouterr().out

    @pytest.mark.parametrize("optimizer", [[], ["--optimizer", "nag"]])
    def test_graham(self, optimizer, npz, capsys):
        assert run("train", "--recipe", "graham", *optimizer, "--data", npz, "--epochs", 1) == 0
        out = capsys.readouterr().out
        assert "net 20-800-800-4, batchwise dropout of 0.2 of the inputs and 0.5" in out
        assert "nag, learning rate 0.01 (exponential:0.01), sum loss, batches of 100" in out

    @pytest.mark.parametrize("pattern", ["batchwise", "independent", "none"])
    def test_convolutional(self, pattern, tmp_path, capsys):
        folder = tmp_path / "run"
        options = ["--data", "digits", "--pattern", pattern, "--output", folder]
        assert run("train", "--model", "lenet", *options, "--epochs", 3) == 0
        out = capsys.readouterr().out
        assert "net 32C5-MP2-64C5-MP2-512N-10N, " in out
        assert "adam, learning rate 0.001 (cosine)" in out
        history = read_metrics(folder / METRICS_NAME)
        assert history[-1].test_error < 0.5
        images = load_digits().test_inputs.reshape(-1, 8, 8)
        np.save(tmp_path / "images.npy", images)
        assert run("predict", folder, tmp_path / "images.npy") == 0
        labels = np.array(capsys.readouterr().out.split(), int)
        errors = (labels != load_digits().test_labels).mean()
        assert errors == pytest.approx(history[-1].test_error)

    def test_convolutional_resumes_bit_for_bit(self, tmp_path):
        whole, resumed = tmp_path / "whole", tmp_path / "resumed"
        options = ["train", "--model", "lenet", "--data", "digits", "--schedule", "constant"]
        assert run(*options, "--epochs", 2, "--output", whole) == 0
        assert run(*options, "--epochs", 1, "--output", resumed) == 0
        assert run("train", "--resume", "--epochs", 2, "--output", resumed) == 0
        same_run(whole, resumed)

    def test_mnist(self, capsys):
        folder = os.environ.get("NUMBADROP_DATA")
        if not folder or not (Path(folder) / "mnist").is_dir():
            pytest.skip("NUMBADROP_DATA names no folder with mnist/ in it")
        options = ["--data-dir", f"{folder}/mnist", "--hidden", "64", "--epochs", 1]
        assert run("train", "--data", "mnist", *options, "--dropout", 0.2) == 0
        error = re.search(r"^test error (\d+\.\d+)%", capsys.readouterr().out, re.M)
        assert float(error[1]) < 15


class TestResume:
    def test_continues_with_the_options_of_the_run(self, npz, tmp_path, capsys):
        short, whole = tmp_path / "short", tmp_path / "whole"
        options = ["--data", npz, *SMALL, "--optimizer", "adam", "--input-dropout", "0.3"]
        run("train", *options, "--epochs", 2, "--output", short)
        run("train", *options, "--epochs", 5, "--output", whole)
        assert run("train", "--resume", "--output", short, "--epochs", 5) == 0
        same_run(short, whole)
        again = ["--hidden", "12", "--optimizer", "adam", "--epochs", 5]
        assert run("train", "--resume", "--output", short, *again) == 0
        same_run(short, whole)

    def test_from_another_folder(self, npz, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(npz.parent)
        options = ["--data", npz.name, *SMALL, "--output", tmp_path / "run"]
        assert run("train", *options, "--epochs", 1) == 0
        monkeypatch.chdir(tmp_path)
        assert run("train", "--resume", "--output", "run", "--epochs", 2) == 0
        monkeypatch.chdir(npz.parent)
        assert run("train", "--resume", *options, "--epochs", 3) == 0
        moved = shutil.copy(npz, tmp_path / "moved.npz")
        assert run("train", "--resume", *options, "--data", moved, "--epochs", 4) == 0
        assert len(read_metrics(tmp_path / "run" / METRICS_NAME)) == 4
        with np.load(npz) as arrays:
            np.savez(moved, **{**arrays, "y_train": arrays["y_train"][::-1]})
        assert run("train", "--resume", *options, "--data", moved, "--epochs", 5) == 2
        assert "of another run: labels" in capsys.readouterr().err

    def test_patience_is_an_option_of_the_run(self, npz, tmp_path):
        options = ["--data", npz, *SMALL, "--lr", "1e-30", "--patience", 3, "--output", tmp_path]
        assert run("train", *options, "--epochs", 2) == 0
        assert run("train", "--resume", "--output", tmp_path, "--epochs", 50) == 0
        assert len(read_metrics(tmp_path / METRICS_NAME)) == 4
        again = ["--resume", "--output", tmp_path, "--epochs", 50, "--patience", 5]
        assert run("train", *again) == 0
        assert len(read_metrics(tmp_path / METRICS_NAME)) == 6

    def test_augmented(self, images, tmp_path, capsys):
        short, whole = tmp_path / "short", tmp_path / "whole"
        options = ["--data", images, *SMALL, "--augment", "1,flip"]
        run("train", *options, "--epochs", 1, "--output", short)
        assert "seed 0, augmented by 1,flip, " in capsys.readouterr().out
        run("train", *options, "--epochs", 3, "--output", whole)
        assert run("train", "--resume", "--output", short, "--epochs", 3) == 0
        same_run(short, whole)
        assert run("train", "--resume", "--output", short, "--augment", "1") == 2
        assert "--augment is 1,flip in the run" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (["--hidden", "13"], r"--hidden is \(12,\) in the run of .*, got \(13,\)"),
            (["--pattern", "none"], "--pattern is batchwise in the run"),
            (["--data", "mnist"], "--data is .*small.npz in the run of .*, got mnist"),
            (["--recipe", "graham"], "--recipe is None in the run of .*, got graham"),
            (["--validation", "9"], "--validation is None in the run of .*, got 9"),
        ],
    )
    def test_options_must_not_contradict_the_run(self, option, message, npz, tmp_path, capsys):
        run("train", "--data", npz, *SMALL, "--epochs", 1, "--output", tmp_path)
        capsys.readouterr()
        assert run("train", "--resume", "--output", tmp_path, *option) == 2
        assert re.search(message, capsys.readouterr().err)

    @pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
    def test_ctrl_c(self, npz, tmp_path):
        interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
        options = ["--data", npz, *SMALL, "--epochs", 100]
        process = subprocess.Popen(
            [*COMMAND, "train", *map(str, options), "--output", interrupted],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        metrics = interrupted / METRICS_NAME
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        message = f"numbadrop: interrupted in epoch .*; {interrupted}.* is ready to resume"
        assert re.fullmatch(message, err.splitlines()[-1])
        assert "Traceback" not in out + err
        assert len(read_metrics(metrics)) < 100

        assert run("train", "--resume", "--output", interrupted) == 0
        assert run("train", *options, "--output", whole) == 0
        same_run(interrupted, whole)


class TestPredict:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        rng = np.random.default_rng(0)
        labels = np.arange(120) % 3
        images = (60 * labels[:, None, None] + rng.integers(60, size=(120, 4, 5))).astype(np.uint8)
        folder = tmp_path_factory.mktemp("images")
        arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
        np.savez(folder / "data.npz", **arrays)
        np.save(folder / "bytes.npy", images)
        np.save(folder / "floats.npy", images / 255)
        header = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
        (folder / "images-idx3-ubyte").write_bytes(header + images.tobytes())
        options = [*SMALL, "--epochs", 40, "--dropout", 0.1, "--output", folder / "run"]
        assert run("train", "--data", folder / "data.npz", *options) == 0
        return folder

    @pytest.mark.parametrize("file", ["data.npz", "bytes.npy", "floats.npy", "images-idx3-ubyte"])
    def test_a_label_a_line(self, file, folder, capsys):
        assert run("predict", folder / "run", folder / file) == 0
        labels = [int(line) for line in capsys.readouterr().out.splitlines()]
        assert np.mean(np.array(labels) == np.arange(120) % 3) > 0.9
        error = read_metrics(folder / "run" / METRICS_NAME)[-1].test_error
        np.testing.assert_allclose(np.mean(np.array(labels) != np.arange(120) % 3), error)

    def test_the_checkpoint_itself(self, folder, capsys):
        assert run("predict", folder / "run" / CHECKPOINT_NAME, folder / "bytes.npy") == 0
        assert len(capsys.readouterr().out.splitlines()) == 120

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (
                np.zeros((2, 19)),
                r"must hold samples of 20 numbers, got an array of shape \(2, 19\)",
            ),
            (np.zeros(20), r"must hold samples of 20 numbers, got an array of shape \(20,\)"),
            (np.full((2, 20), np.nan), "must be finite, sample 0"),
            (np.full((2, 20), "a"), "must be numbers"),
            (np.zeros((0, 20)), r"must be of shape \(samples, features\), got shape \(0, 20\)"),
        ],
    )
    def test_bad_samples(self, array, message, folder, tmp_path, capsys):
        file = tmp_path / "bad.npy"
        np.save(file, array)
        assert run("predict", folder / "run", file) == 2
        assert re.fullmatch(f"numbadrop: {file}:? {message}.*\n", capsys.readouterr().err)

    def test_a_checkpoint_that_fit_wrote_alone(self, tmp_path, folder, capsys):
        from numbadrop.nn import Linear
        from numbadrop.optim import SGD
        from numbadrop.train import Checkpoint, save_checkpoint

        model = Linear(20, 3)
        path = tmp_path / "mine.safetensors"
        optimizer = SGD(model.parameters(), lr=0.1)
        save_checkpoint(path, Checkpoint.capture(model, optimizer, {}, {}))
        assert run("predict", path, folder / "bytes.npy") == 2
        assert "it was not made by numbadrop train" in capsys.readouterr().err

    @pytest.mark.skipif(os.name != "posix", reason="a pipe that is closed")
    def test_a_reader_that_goes(self, folder):
        images = np.tile(np.load(folder / "bytes.npy"), (200, 1, 1))
        np.save(folder / "many.npy", images)
        command = [*COMMAND, "predict", str(folder / "run"), str(folder / "many.npy")]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as process:
            assert process.stdout.readline() in ("0\n", "1\n", "2\n")
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait() == 0


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ([], "arguments are required"),
            (["dance"], "invalid choice: 'dance'"),
            (["train", "--foo"], "unrecognized arguments: --foo"),
            (["train", "--dropout", "1"], r"--dropout: must be in \[0, 1\), got '1'"),
            (["train", "--input-dropout", "-0.1"], r"--input-dropout: must be in \[0, 1\)"),
            (["train", "--dropout", "nan"], r"--dropout: must be in \[0, 1\), got 'nan'"),
            (["train", "--hidden", "8,x"], "--hidden: must be a whole number of at least 1, got"),
            (["train", "--hidden", "0"], "--hidden: must be a whole number of at least 1, got '0'"),
            (["train", "--lr", "0"], "--lr: must be a number above 0, got '0'"),
            (["train", "--lr", "inf"], "--lr: must be a number above 0, got 'inf'"),
            (["train", "--momentum", "1"], r"--momentum: must be in \[0, 1\)"),
            (["train", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
            (["train", "--epochs", "2.5"], "--epochs: must be a whole number"),
            (["train", "--seed", "-1"], "--seed"),
            (["train", "--threads", "0"], "--threads: must be a whole number of at least 1"),
            (["train", "--threads", "5000"], r"--threads must be in \[1, \d+\], got 5000"),
            (["train", "--pattern", "odd"], "--pattern: invalid choice: 'odd'"),
            (["train", "--schedule", "odd"], "--schedule: schedule must be constant, .*got 'odd'"),
            (
                ["train", "--augment", "4,turn"],
                "--augment: augment must be none or SHIFT.*got '4,turn'",
            ),
            (
                ["train", "--augment", "8"],
                r"--augment: shift must be below .*got 8 for .*\(8, 8, 1\)",
            ),
            (["train", "--data", "cifar10", "--data-dir", "absent"], "no CIFAR-10 in .*absent"),
            (
                ["train", "--optimizer", "adam", "--momentum", "0.5"],
                "--momentum is for sgd and nag, got --optimizer adam",
            ),
            (
                ["train", "--model", "lenet", "--momentum", "0.5"],
                "--momentum is for sgd and nag, got --optimizer adam",
            ),
            (
                ["train", "--recipe", "graham", "--optimizer", "sgd"],
                "--recipe graham knows a learning rate for nag alone: give --lr with --opt.* sgd",
            ),
            (["train", "--data", "absent"], "absent: no such file or folder"),
            (
                ["train", "--model", "lenet", "--hidden", "9"],
                "--hidden is for --model mlp, got --model lenet",
            ),
            (
                ["train", "--model", "lenet", "--recipe", "graham"],
                "--recipe is for --model mlp, got --model lenet",
            ),
            (
                ["train", "--model", "lenet", "--data", "artificial"],
                "artificial: model 'lenet' needs images, these data are not",
            ),
            (["train", "--data-dir", "x"], "--data-dir is for --data mnist and cifar10, got"),
            (["train", "--data", "mnist", "--data-dir", "absent"], "no train-images-idx3-ubyte"),
            (["train", "--validation", "5000"], r"--validation: count must be in \[1, 1438\)"),
            (["train", "--resume"], "--resume needs --output"),
            (["train", "--resume", "--output", "absent"], "no such file"),
            (["predict", "absent", "absent"], "absent: no such file"),
            (["predict", "absent"], "required: FILE"),
        ],
    )
    def test_one_line_and_exit_code_2(self, args, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert run(*args) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.search(message, err)
        assert err.count("\n") == 1
        assert err.startswith("numbadrop")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made(self, npz, tmp_path, capsys):
        (tmp_path / "file").touch()
        folder = tmp_path / "file" / "run"
        assert run("train", "--data", npz, *SMALL, "--epochs", 1, "--output", folder) == 2
        assert f"Not a directory: '{folder}" in capsys.readouterr().err

    def test_another_run_in_the_folder(self, npz, tmp_path, capsys):
        options = ["--data", npz, *SMALL, "--epochs", 1, "--output", tmp_path]
        assert run("train", *options) == 0
        before = (tmp_path / CHECKPOINT_NAME).read_bytes()
        assert run("train", *options) == 2
        assert "exists already: resume that run" in capsys.readouterr().err
        assert (tmp_path / CHECKPOINT_NAME).read_bytes() == before

    def test_divergence(self, npz, tmp_path, capsys):
        options = ["--lr", "1e25", "--epochs", 3, "--output", tmp_path]
        assert run("train", "--data", npz, *SMALL, *options) == 1
        err = capsys.readouterr().err
        assert re.fullmatch(r"numbadrop: .*epoch 1.*last good state is in .*\n", err)
        assert load_checkpoint(tmp_path / CHECKPOINT_NAME).is_finite()

    def test_damaged_checkpoint(self, npz, tmp_path, capsys):
        run("train", "--data", npz, *SMALL, "--epochs", 1, "--output", tmp_path)
        path = tmp_path / CHECKPOINT_NAME
        path.write_bytes(path.read_bytes()[:-100])
        capsys.readouterr()
        for command in (["train", "--resume", "--output", tmp_path], ["predict", tmp_path, npz]):
            assert run(*command) == 2
            assert re.fullmatch(f"numbadrop: {path}: truncated.*\n", capsys.readouterr().err)

    def test_a_missing_extra(self, npz, tmp_path, monkeypatch, capsys):
        for module in ("safetensors", "safetensors.numpy"):
            monkeypatch.setitem(sys.modules, module, None)
        assert run("train", "--data", npz, *SMALL, "--epochs", 1, "--output", tmp_path) == 2
        err = capsys.readouterr().err
        assert 'safetensors, which is not installed: pip install "numbadrop[train]"' in err

    def test_without_matplotlib_only_the_picture_is_missing(
        self, npz, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        assert run("train", "--data", npz, *SMALL, "--epochs", 1, "--output", tmp_path) == 0
        assert "no curve.png: drawing a curve needs matplotlib" in capsys.readouterr().err
        assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT_NAME, METRICS_NAME]


class TestInfoAndWarmup:
    def test_info_counts_all_machine_code(self, capsys, monkeypatch, tmp_path):
        for name in ("a.nbi", "a.1.nbc", "b.cubin", "other"):
            (tmp_path / name).write_bytes(bytes(1 << 20))
        monkeypatch.setattr(warmup, "cache_folder", lambda: tmp_path)
        assert run("info") == 0
        assert f"{tmp_path}, 3 files, 3.0 MiB" in capsys.readouterr().out

    def test_info(self, capsys):
        assert run("info") == 0
        out = capsys.readouterr().out
        for name in ("numbadrop", "cpu", "cpu features", "register tile", "threads", "cache"):
            assert re.search(rf"^{name} +\S", out, re.M), name
        assert re.search(r"cache +/.*, [1-9]\d* files, \d+\.\d MiB", out)

    def test_a_name_that_the_output_cannot_encode(self, tmp_path):
        folder = tmp_path / "\N{LATIN CAPITAL LETTER L WITH STROKE}"
        env = {**ENVIRONMENT, "NUMBA_CACHE_DIR": str(folder), "PYTHONIOENCODING": "cp1252"}
        done = subprocess.run([*COMMAND, "info"], env=env, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u0141" in done.stdout

    def test_without_numbas_compiler(self):
        done = subprocess.run(
            [*COMMAND, "train", "--epochs", "1"], env={**ENVIRONMENT, "NUMBA_DISABLE_JIT": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("numbadrop: numbadrop's kernels are machine code")
        assert done.stderr.count("\n") == 1

    def test_warmup(self, capsys):
        assert run("warmup") == 0
        out, err = capsys.readouterr()
        assert re.search(r"^ready after \d+\.\d s; cache: /.*, [1-9]\d* files, ", out)
        assert re.search(r"^matrix products on submatrices \.\.\.\n +\d+\.\d s$", err, re.M)
        for optimizer in ("sgd", "nag", "adam", "adamw"):
            assert f"update rule of {optimizer} ..." in err


def test_a_cold_start_says_what_it_compiles(npz, tmp_path):
    with subprocess.Popen(
        [*COMMAND, "train", "--data", str(npz), *SMALL, "--epochs", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "NUMBA_CACHE_DIR": str(tmp_path)},
    ) as process:
        said = process.stderr.readline()
        process.kill()
    assert said == "compiling matrix products on submatrices for this machine, once ...\n"


def test_what_is_not_needed_is_not_imported(npz):
    code = (
        "import sys; from numbadrop import cli\n"
        "assert cli.main(['train', '--hidden', '8', '--epochs', '1']) == 0\n"
        "slow = {'sklearn', 'matplotlib', 'pooch', 'safetensors', 'rich'}\n"
        "assert not slow & sys.modules.keys(), slow & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_live_progress_on_a_terminal(npz):
    pytest.importorskip("rich")
    import pty

    here, there = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "train", "--data", str(npz), *SMALL, "--epochs", "200"],
        stdout=there,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(there)
    shown = b""
    while True:
        try:
            chunk = os.read(here, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(here)
    assert process.wait() == 0, process.stderr.read()
    process.stderr.close()
    text = shown.decode()
    assert "\x1b[" in text
    assert re.search(r"epoch .*\d+/200.*loss.*test error.*ms/step", text)
    assert re.search(r"test error \d+\.\d+% \(\d+ of 60\) after 200 epochs", text)
