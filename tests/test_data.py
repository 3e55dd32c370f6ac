from __future__ import annotations

import gzip
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadrop.data import (
    DataError,
    Dataset,
    Minibatches,
    artificial,
    as_floats,
    load_digits,
    load_idx,
    load_mnist,
    load_path,
    read_idx,
)

CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}


def idx_bytes(array: np.ndarray) -> bytes:
    magic = bytes([0, 0, CODES[str(array.dtype)], array.ndim])
    return (
        magic
        + np.array(array.shape, dtype=">u4").tobytes()
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write_idx_folder(folder: Path, compress: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(256, size=(7, 3, 4), dtype=np.uint8),
        "train-labels-idx1-ubyte": rng.integers(10, size=7, dtype=np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(256, size=(5, 3, 4), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": rng.integers(10, size=5, dtype=np.uint8),
    }
    for name, array in arrays.items():
        content = idx_bytes(array)
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


class TestMinibatches:
    @given(
        samples=st.integers(1, 50),
        batch_size=st.integers(1, 60),
        seed=st.integers(0, 2**64),
        epoch=st.integers(0, 1000),
        data=st.data(),
    )
    def test_an_epoch_visits_every_sample_once(self, samples, batch_size, seed, epoch, data):
        labels = np.arange(samples)
        minibatches = Minibatches(labels[:, None] / 2, labels, batch_size, seed)
        batches = list(minibatches.batches(epoch))
        assert len(batches) == len(minibatches)
        assert all(len(y) == batch_size for _, y in batches[:-1])
        assert sorted(np.concatenate([y for _, y in batches])) == labels.tolist()
        for x, y in batches:
            np.testing.assert_array_equal(x[:, 0] * 2, y)

        start = data.draw(st.integers(0, len(batches)))
        rest = list(Minibatches(labels, labels, batch_size, seed).batches(epoch, start))
        assert [y.tolist() for _, y in rest] == [y.tolist() for _, y in batches[start:]]

    def test_order_depends_on_seed_and_epoch_only(self):
        inputs = np.zeros((100, 1))
        labels = np.arange(100)

        def order(seed, epoch):
            return Minibatches(inputs, labels, 10, seed).order(epoch).tolist()

        assert order(3, 5) == order(3, 5)
        orders = [tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)]
        assert len(set(orders)) == len(orders)
        model_stream = np.random.default_rng(3).permutation(100).tolist()
        assert order(3, 0) != model_stream

    def test_batches_are_fresh_floats(self):
        inputs = np.eye(4, dtype=np.uint8)
        x, _ = next(Minibatches(inputs, np.arange(4), 4).batches(0))
        assert x.dtype == np.float32
        x[:] = 7
        assert inputs.max() == 1

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_floats_keep_their_precision(self, dtype):
        x, _ = next(Minibatches(np.eye(4, dtype=dtype), np.arange(4), 4).batches(0))
        assert x.dtype == dtype
        assert as_floats(x, divisor=255) is x

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.uint32, np.int64])
    def test_whole_numbers_are_divided_in_float32(self, dtype):
        whole = np.array([[0, 1, 100]]).astype(dtype)
        floats = as_floats(whole, divisor=255)
        assert floats.dtype == np.float32
        np.testing.assert_array_equal(floats, whole.astype(np.float32) * np.float32(1 / 255))
        np.testing.assert_array_equal(as_floats(whole), whole.astype(np.float32))

    @pytest.mark.parametrize(
        ("inputs", "labels", "batch_size", "seed", "message"),
        [
            (np.zeros((3, 2)), np.zeros(4, int), 1, 0, r"shapes \(3, 2\) and \(4,\)"),
            (np.zeros((0, 2)), np.zeros(0, int), 1, 0, "at least one sample"),
            (np.zeros((3, 2)), np.array([0, np.nan, 0]), 1, 0, r"got nan at position \[1\]"),
            (np.zeros((3, 2)), np.array([[0.0], [1.0], [np.inf]]), 1, 0, r"position \[2, 0\]"),
            (np.zeros((3, 2)), np.zeros(3, int), 0, 0, "batch_size must be at least 1, got 0"),
            (np.zeros((3, 2)), np.zeros(3, int), 1, -1, "seed must not be negative, got -1"),
        ],
    )
    def test_bad_input(self, inputs, labels, batch_size, seed, message):
        with pytest.raises(ValueError, match=message):
            Minibatches(inputs, labels, batch_size, seed)

    def test_inputs_that_are_not_numbers(self):
        with pytest.raises(TypeError, match="inputs must be numbers, got dtype <U1"):
            Minibatches(np.array(["a"]), np.zeros(1, int), 1)


GOOD = {
    "train_inputs": np.zeros((4, 3), np.float32),
    "train_labels": np.array([0, 1, 2, 0]),
    "test_inputs": np.zeros((2, 3), np.float32),
    "test_labels": np.array([2, 1]),
}


class TestDataset:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train_inputs": np.zeros(4)}, r"train_inputs must be of shape \(samples, features\)"),
            ({"train_inputs": np.zeros((4, 0))}, r"train_inputs must be of shape"),
            ({"train_inputs": np.zeros((3, 3))}, r"train_labels must be of shape \(3,\).*\(4,\)"),
            ({"train_inputs": np.full((4, 3), "a")}, "train_inputs must be numbers"),
            (
                {"test_inputs": np.array([[0, 0, 0], [0, np.nan, 0]])},
                "test_inputs must be finite, sample 1",
            ),
            ({"test_inputs": np.zeros((2, 5))}, "have 3 features, test_inputs have 5"),
            ({"test_labels": np.array([0.0, 1.0])}, "test_labels must be integers, got.*float64"),
            ({"test_labels": np.array([0, 3])}, r"in \[0, 3\), got 3 at position 1"),
            ({"train_labels": np.array([0, -1, 0, 0])}, r"in \[0, 3\), got -1 at position 1"),
        ],
    )
    def test_bad_input(self, change, message):
        with pytest.raises(DataError, match=f"mine: .*{message}"):
            Dataset("mine", **{**GOOD, **change}, classes=3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_shape": (1, 2, 1)}, r"image_shape must be .* of 3 features, got \(1, 2, 1\)"),
            ({"image_shape": (1, 3)}, r"image_shape must be .* of 3 features, got \(1, 3\)"),
            ({"image_shape": (-1, -3, 1)}, "image_shape must be"),
            ({"divisor": 0.0}, "divisor must be above 0, got 0.0"),
            ({"divisor": np.nan}, "divisor must be above 0, got nan"),
        ],
    )
    def test_bad_description(self, change, message):
        with pytest.raises(DataError, match=f"mine: {message}"):
            Dataset("mine", **GOOD, classes=3, **change)

    def test_minibatches_are_what_a_net_sees(self):
        stored = np.arange(12, dtype=np.uint8).reshape(4, 3)
        data = Dataset("mine", **{**GOOD, "train_inputs": stored}, classes=3, divisor=16.0)
        minibatches = data.minibatches(3, seed=7)
        np.testing.assert_array_equal(
            minibatches.order(2), Minibatches(stored, stored, 3, 7).order(2)
        )
        for x, _ in minibatches.batches(2):
            assert x.dtype == np.float32
        np.testing.assert_array_equal(x, stored[minibatches.order(2)[3:]] / 16)

    def test_validation_split_leaves_the_test_samples_out(self):
        numbers = np.arange(120)
        mine = {**GOOD, "train_inputs": np.outer(numbers, [1.0, 2.0, 3.0])}
        mine["train_labels"] = numbers // 40  # sorted by class
        data = Dataset("mine", **mine, classes=3, divisor=9.0, image_shape=(1, 3, 1))
        split = data.validation_split(30)
        assert (split.divisor, split.image_shape) == (9.0, (1, 3, 1))
        train, held_out = (
            part[:, 0].astype(int) for part in (split.train_inputs, split.test_inputs)
        )
        assert len(held_out) == 30
        np.testing.assert_array_equal(np.sort([*train, *held_out]), numbers)
        np.testing.assert_array_equal(split.train_labels, train // 40)
        np.testing.assert_array_equal(split.test_labels, held_out // 40)
        assert set(split.train_labels) == set(split.test_labels) == {0, 1, 2}
        np.testing.assert_array_equal(data.validation_split(30).test_inputs, split.test_inputs)
        data = Dataset("mine", **GOOD, classes=3)
        for count in (0, 4):
            with pytest.raises(ValueError, match=rf"count must be in \[1, 4\), got {count}"):
                data.validation_split(count)


class TestReadIdx:
    @given(
        dtype=st.sampled_from(sorted(CODES)),
        shape=st.lists(st.integers(0, 4), min_size=0, max_size=4),
        compress=st.booleans(),
        seed=st.integers(0, 100),
    )
    def test_round_trip(self, tmp_path_factory, dtype, shape, compress, seed):
        bits = np.random.default_rng(seed).integers(256, size=[*shape, 8], dtype=np.uint8)
        array = bits.view(dtype)[..., 0]
        path = tmp_path_factory.getbasetemp() / "array.idx"
        content = idx_bytes(array)
        path.write_bytes(gzip.compress(content) if compress else content)
        read = read_idx(path)
        assert read.dtype == array.dtype
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)

    @pytest.mark.parametrize("compress", [False, True])
    def test_truncated_anywhere(self, tmp_path, compress):
        content = idx_bytes(np.arange(12, dtype=np.int16).reshape(3, 4))
        if compress:
            content = gzip.compress(content)
        path = tmp_path / "images"
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path}: (truncated|broken gzip)"):
                read_idx(path)

    def test_too_long(self, tmp_path):
        path = tmp_path / "images"
        path.write_bytes(idx_bytes(np.zeros((2, 3), np.uint8)) + b"\0")
        with pytest.raises(DataError, match=r"too long.* shape \(2, 3\) takes 18 bytes, got 19"):
            read_idx(path)

    @pytest.mark.parametrize(
        ("magic", "message"),
        [
            (b"\x01\0\x08\x01", "not an IDX file.*got 01 00 08 01"),
            (b"PK\x03\x04", "not an IDX file"),
            (b"\0\0\x0a\x01", "unknown IDX element type 0a, known are 08, 09"),
        ],
    )
    def test_wrong_magic(self, tmp_path, magic, message):
        path = tmp_path / "images"
        path.write_bytes(magic + bytes(12))
        with pytest.raises(DataError, match=f"{path}: {message}"):
            read_idx(path)

    def test_damaged_gzip(self, tmp_path):
        path = tmp_path / "images.gz"
        content = bytearray(gzip.compress(idx_bytes(np.arange(1000, dtype=np.int32))))
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match="broken gzip file"):
            read_idx(path)


class TestLoadIdx:
    @pytest.mark.parametrize("compress", [False, True])
    def test_images_and_labels(self, tmp_path, compress):
        arrays = write_idx_folder(tmp_path, compress)
        data = load_idx(tmp_path)
        images = arrays["train-images-idx3-ubyte"].reshape(7, 12)
        assert data.train_inputs.dtype == np.float32
        np.testing.assert_allclose(data.train_inputs, images / 255, rtol=1e-6)
        np.testing.assert_array_equal(data.test_labels, arrays["t10k-labels-idx1-ubyte"])
        assert (data.classes, data.divisor, data.image_shape) == (10, 255.0, (3, 4, 1))

    def test_training_and_test_images_of_different_shape(self, tmp_path):
        write_idx_folder(tmp_path)
        images = tmp_path / "t10k-images-idx3-ubyte"
        images.write_bytes(idx_bytes(np.zeros((5, 4, 3), np.uint8)))
        with pytest.raises(DataError, match=r"of shape \(3, 4, 1\), test images \(4, 3, 1\)"):
            load_idx(tmp_path)

    def test_numbers_that_are_not_bytes_are_used_as_they_are(self, tmp_path):
        write_idx_folder(tmp_path)
        for name, count in (("train", 7), ("t10k", 5)):
            pixels = np.full((count, 3, 4), 300, np.int16)
            (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        data = load_idx(tmp_path)
        assert data.train_inputs.dtype == np.float32
        assert (data.train_inputs == 300).all()
        assert data.divisor == 1.0

    def test_missing_file(self, tmp_path):
        write_idx_folder(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(DataError, match=f"no t10k-labels-idx1-ubyte or .*gz in {tmp_path}"):
            load_idx(tmp_path)

    def test_images_and_labels_of_different_length(self, tmp_path):
        write_idx_folder(tmp_path)
        labels = tmp_path / "train-labels-idx1-ubyte"
        labels.write_bytes(idx_bytes(np.zeros(6, np.uint8)))
        with pytest.raises(DataError, match=f"has 7 images, {labels} has 6 labels"):
            load_idx(tmp_path)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array([0, 1, 2, 3, 4, 5, 10], np.uint8), r"in \[0, 10\), got 10 at position 6"),
            (np.array([0, 1, 2, -3, 4, 5, 6], np.int8), r"in \[0, 10\), got -3 at position 3"),
            (np.full(7, np.nan, np.float32), "must be integers, got dtype float32"),
            (np.zeros((7, 1), np.uint8), r"labels have 1 axis, got shape \(7, 1\)"),
        ],
    )
    def test_bad_labels_name_the_file(self, tmp_path, array, message):
        write_idx_folder(tmp_path)
        labels = tmp_path / "train-labels-idx1-ubyte"
        labels.write_bytes(idx_bytes(array))
        with pytest.raises(DataError, match=f"{labels}.*{message}"):
            load_idx(tmp_path)


ARRAYS = {
    "x_train": np.full((4, 2, 3), 255, np.uint8),
    "y_train": np.array([0, 1, 2, 1]),
    "x_test": np.zeros((2, 2, 3), np.uint8),
    "y_test": np.array([1, 3]),
}


class TestLoadPath:
    def test_npz(self, tmp_path):
        path = tmp_path / "mine.npz"
        np.savez(path, **ARRAYS)
        data = load_path(path)
        assert data.train_inputs.shape == (4, 6)
        assert (data.train_inputs == 1).all()
        assert (data.classes, data.divisor, data.image_shape) == (4, 255.0, (2, 3, 1))

    @pytest.mark.parametrize(
        ("axes", "shape"), [((6,), None), ((1, 2, 3), (1, 2, 3)), ((1, 1, 2, 3), None)]
    )
    def test_axes_of_images(self, axes, shape, tmp_path):
        path = tmp_path / "mine.npz"
        images = {key: ARRAYS[key].reshape(-1, *axes) for key in ("x_train", "x_test")}
        np.savez(path, **{**ARRAYS, **images})
        assert load_path(path).image_shape == shape

    def test_folder(self, tmp_path):
        write_idx_folder(tmp_path)
        assert load_path(tmp_path).train_inputs.shape == (7, 12)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"y_test": None}, "no y_test, it has x_train, y_train, x_test"),
            ({"y_test": np.array([0.0, np.nan])}, "y_test must be integers.* got float64"),
            ({"y_train": np.array([0, 1])}, r"train_labels must be of shape \(4,\)"),
            ({"y_train": np.array([0, 1, -1, 2])}, r"in \[0, 4\), got -1 at position 2"),
            ({"x_test": np.zeros(2)}, r"x_test must be of shape \(samples, ...\)"),
            (
                {"x_test": np.zeros((2, 3, 2), "B")},
                r"of shape \(2, 3, 1\), test images \(3, 2, 1\)",
            ),
            ({"x_test": np.zeros((0, 2, 3), "B")}, r"test_inputs must be of shape .*\(0, 6\)"),
            ({"x_train": np.full((4, 2, 3), "a")}, "train_inputs must be numbers"),
            ({"x_test": np.zeros((2, 5), "B")}, "have 6 features, test_inputs have 5"),
            ({"x_train": np.array([{}] * 4)}, "not a readable"),
        ],
    )
    def test_bad_npz(self, tmp_path, change, message):
        path = tmp_path / "mine.npz"
        arrays = {k: v for k, v in {**ARRAYS, **change}.items() if v is not None}
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=f"{path}.*{message}"):
            load_path(path)

    @pytest.mark.parametrize("dtype", ["f2", ">f4", "f8"])
    def test_floats_become_float32(self, dtype, tmp_path):
        path, x_train = tmp_path / "mine.npz", np.arange(24).reshape(4, 6)
        floats = {"x_train": x_train.astype(dtype), "x_test": x_train[:2].astype(dtype)}
        np.savez(path, **{**ARRAYS, **floats})
        data = load_path(path)
        assert data.train_inputs.dtype == data.test_inputs.dtype == np.float32
        np.testing.assert_array_equal(data.train_inputs, x_train)
        assert data.divisor == 1
        np.savez(path, **{**ARRAYS, **floats, "x_test": np.full((2, 6), 1e300)})
        with pytest.raises(DataError, match="test_inputs must be finite, sample 0 has"):
            load_path(path)

    def test_both_parts_are_scaled_alike(self, tmp_path):
        path = tmp_path / "mine.npz"
        whole = {"x_test": ARRAYS["x_train"][:2].astype(np.int64)}
        np.savez(path, **{**ARRAYS, **whole})
        assert (load_path(path).test_inputs == 1).all()
        np.savez(path, **{**ARRAYS, "x_test": np.ones((2, 2, 3))})
        with pytest.raises(DataError, match=r"both be floats or both whole .* uint8 and float64"):
            load_path(path)

    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_damaged_npz(self, save, tmp_path):
        path = tmp_path / "mine.npz"
        save(path, **ARRAYS)
        content = path.read_bytes()
        for at in range(0, len(content), 7):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
            # A byte that nobody reads may be any other.
            with suppress(DataError):
                load_path(path)

    def test_truncated_npz(self, tmp_path):
        path = tmp_path / "mine.npz"
        np.savez(path, **ARRAYS)
        content = path.read_bytes()
        for length in range(0, len(content), 37):
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path}: not a readable"):
                load_path(path)

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="no such file or folder"):
            load_path(tmp_path / "absent")


class TestMnist:
    def test_real_files(self):
        folder = os.environ.get("NUMBADROP_DATA")
        if not folder or not (Path(folder) / "mnist").is_dir():
            pytest.skip("NUMBADROP_DATA names no folder with mnist/ in it")
        data = load_mnist(Path(folder) / "mnist")
        assert data.train_inputs.shape == (60000, 784)
        assert data.image_shape == (28, 28, 1)
        assert data.test_inputs.shape == (10000, 784)
        assert data.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        # Known mean and deviation of the training pixels.
        np.testing.assert_allclose(data.train_inputs.mean(dtype=np.float64), 0.1307, atol=5e-5)
        np.testing.assert_allclose(data.train_inputs.std(dtype=np.float64), 0.3081, atol=5e-5)

    def test_no_network_says_where_to_put_the_files(self, tmp_path, monkeypatch):
        pooch = pytest.importorskip("pooch")

        def refuse(*args, **kwargs):
            raise ConnectionError("no route to host")

        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
        monkeypatch.setattr(pooch, "retrieve", refuse)
        with pytest.raises(DataError, match=f"put train.*into {tmp_path}.*--data-dir"):
            load_mnist()

    def test_wrong_checksum_is_refused(self, tmp_path, monkeypatch):
        pooch = pytest.importorskip("pooch")
        folder = tmp_path / "numbadrop" / "mnist"
        folder.mkdir(parents=True)
        write_idx_folder(folder, compress=True)

        def download_something_else(url, output_file, pooch):
            Path(output_file).write_bytes(b"not the file")

        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
        monkeypatch.setattr(
            "pooch.core.choose_downloader", lambda *args, **kwargs: download_something_else
        )
        with pytest.raises(DataError, match=r"could not be downloaded.*hash"):
            load_mnist()


class TestDigits:
    def test_split(self):
        pytest.importorskip("sklearn")
        data = load_digits()
        assert data.train_inputs.shape[1] == data.features == 64
        assert data.image_shape == (8, 8, 1)
        assert (data.train_inputs.min(), data.train_inputs.max()) == (0, 1)
        train, test = np.bincount(data.train_labels), np.bincount(data.test_labels)
        assert train.sum() + test.sum() == 1797
        np.testing.assert_array_equal(test, np.round((train + test) / 5))

    def test_same_images_as_scikit_learn_itself(self):
        datasets = pytest.importorskip("sklearn.datasets")
        data = load_digits()
        pixels, labels = datasets.load_digits(return_X_y=True)
        ours = np.column_stack(
            (
                np.concatenate((data.train_inputs, data.test_inputs)) * 16,
                np.concatenate((data.train_labels, data.test_labels)),
            )
        )
        theirs = np.column_stack((pixels, labels))
        assert sorted(ours.tolist()) == sorted(theirs.tolist())

    def test_without_scikit_learn(self):
        hide = "import sys; sys.modules['sklearn'] = None\n"
        run = subprocess.run(
            [sys.executable, "-c", hide + "from numbadrop.data import load_digits; load_digits()"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert 'sklearn, which is not installed: pip install "numbadrop[data]"' in run.stderr


class TestArtificial:
    def test_is_a_function_of_the_seed(self):
        sizes = {"classes": 4, "train_samples": 40, "test_samples": 8, "features": 30, "steps": 9}
        first, again = artificial(**sizes, seed=1), artificial(**sizes, seed=1)
        other = artificial(**sizes, seed=2)
        np.testing.assert_array_equal(first.train_inputs, again.train_inputs)
        assert (first.train_inputs != other.train_inputs).any()
        assert set(np.unique(first.train_inputs)) == {0, 1}
        np.testing.assert_array_equal(np.bincount(first.train_labels), [10] * 4)

    def test_without_noise_samples_are_points_of_a_walk(self):
        data = artificial(1, 500, 20, features=64, steps=6, noise=0.0)
        points = np.unique(data.train_inputs, axis=0)
        assert len(points) <= 6
        apart = (points[:, None] != points[None]).sum(axis=2)
        assert apart.max() <= 5
        assert (apart == 1).any(axis=1).all()

    @settings(deadline=None, max_examples=10)
    @given(noise=st.sampled_from([0.0, 0.1, 0.4, 1.0]))
    def test_noise_flips_that_share_of_the_bits(self, noise):
        clean = artificial(2, 400, 2, features=500, steps=1, noise=0.0).train_inputs
        noisy = artificial(2, 400, 2, features=500, steps=1, noise=noise).train_inputs
        # 200,000 bits: four standard deviations of the share are at most 0.0045.
        np.testing.assert_allclose((clean != noisy).mean(), noise, atol=0.0045)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"classes": 0}, "classes must be at least 1, got 0"),
            ({"steps": 0}, "steps must be at least 1, got 0"),
            ({"noise": 1.5}, r"noise must be in \[0, 1\], got 1.5"),
        ],
    )
    def test_bad_input(self, change, message):
        with pytest.raises(ValueError, match=message):
            artificial(**{"train_samples": 4, "test_samples": 4, **change})
