from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numbadrop.data import (
    Augmentation,
    DataError,
    Dataset,
    Minibatches,
    cifar10,
    load_cifar10,
    load_image_folder,
    load_path,
)
from numbadrop.data.ahead import DEPTH, ahead
from numbadrop.data.archives import read_archive
from numbadrop.data.pickles import read_pickle

IMAGES = 3  # of a file of the synthetic releases


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the release has them."""

    def save_string(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string}


def python2_pickle(obj) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(obj)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_archive(path: Path, files: dict[str, bytes]):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
        with tarfile.open(path, mode) as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def write_files(folder: Path, files: dict[str, bytes]):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def batches(monkeypatch):
    """Pixels of shape (files, images, height, width, channels) and labels, for small releases."""
    monkeypatch.setattr(cifar10, "IMAGES", IMAGES)
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(6, IMAGES, 32, 32, 3), dtype=np.uint8)
    return pixels, rng.integers(10, size=(6, IMAGES))


def release(kind: str, batches) -> dict[str, bytes]:
    """Return the files of a release, by their path in its archive."""
    files = {}
    form = cifar10.PYTHON if kind == "python" else cifar10.BINARY
    for name, pixels, labels in zip(form.files, *batches, strict=True):
        planes = pixels.transpose(0, 3, 1, 2).reshape(IMAGES, 3072)
        if kind == "python":
            batch = {b"batch_label": b"one of 6", b"labels": labels.tolist(), b"data": planes}
            content = python2_pickle(batch)
        else:
            content = np.column_stack((labels.astype(np.uint8), planes)).tobytes()
        files[f"{form.folder}/{name}"] = content
    return files


class TestCifar10:
    @pytest.mark.parametrize("kind", ["python", "binary"])
    @pytest.mark.parametrize("form", ["folder", "folder around", "archive"])
    def test_releases(self, kind, form, batches, tmp_path):
        files = release(kind, batches)
        folder = tmp_path
        if form == "archive":
            files = {"cifar/readme.html": b"", **dict(reversed(files.items()))}
            write_archive(tmp_path / f"cifar-10-{kind}.tar.gz", files)
        else:
            write_files(tmp_path, files)
            if form == "folder":
                folder = (tmp_path / next(iter(files))).parent
        before = sorted(tmp_path.rglob("*"))
        data = load_cifar10(folder)
        assert sorted(tmp_path.rglob("*")) == before
        pixels, labels = batches
        assert (data.name, data.classes, data.divisor) == ("cifar10", 10, 255.0)
        assert data.image_shape == (32, 32, 3)
        assert data.train_inputs.dtype == np.uint8
        np.testing.assert_array_equal(data.train_inputs, pixels[:5].reshape(-1, 3072))
        np.testing.assert_array_equal(data.test_inputs, pixels[5].reshape(-1, 3072))
        np.testing.assert_array_equal(data.train_labels, labels[:5].ravel())
        np.testing.assert_array_equal(data.test_labels, labels[5])

    @pytest.mark.parametrize("kind", ["python", "binary"])
    def test_a_missing_or_truncated_file_is_named(self, kind, batches, tmp_path):
        files = release(kind, batches)
        write_files(tmp_path, files)
        name, content = list(files.items())[3]
        for length in range(0, len(content), 997):
            (tmp_path / name).write_bytes(content[:length])
            with pytest.raises(
                DataError, match=rf"{tmp_path / name}: (not a read|must be of 9219)"
            ):
                load_cifar10(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match=rf"no data_batch_4.* in {tmp_path}/cifar"):
            load_cifar10(tmp_path)

    def test_a_label_out_of_range(self, batches, tmp_path):
        batches[1][5, 1] = 10
        write_files(tmp_path, release("binary", batches))
        with pytest.raises(DataError, match=r"test_batch.bin: labels must be in \[0, 10\), got 10"):
            load_cifar10(tmp_path)

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ([1, 2], "must hold a dict with b'data' and b'labels'"),
            ({b"data": np.zeros((3, 3072), np.uint8)}, "must hold a dict"),
            (
                {b"data": np.zeros((3, 9), np.uint8), b"labels": [0, 1, 2]},
                r"b'data' must be uint8 of shape \(3, 3072\), got uint8 of shape \(3, 9\)",
            ),
            (
                {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1]},
                r"b'labels' must be of shape \(3,\)",
            ),
            (
                {b"data": np.zeros((3, 3072), np.int8), b"labels": [0, 1, 2]},
                "an array must be of uint8, got b?'i1'",
            ),
        ],
    )
    def test_a_pickle_of_something_else(self, batch, message, batches, tmp_path):
        files = release("python", batches)
        name = "cifar-10-batches-py/data_batch_2"
        write_files(tmp_path, {**files, name: python2_pickle(batch)})
        with pytest.raises(DataError, match=f"{tmp_path / name}: .*{message}"):
            load_cifar10(tmp_path)

    def test_damaged_archive(self, batches, tmp_path):
        path = tmp_path / "cifar-10-binary.tar.gz"
        write_archive(path, release("binary", batches))
        content = path.read_bytes()
        for length in range(0, len(content), len(content) // 20):
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path}|no .* in {path}"):
                load_cifar10(tmp_path)

    def test_nothing_there(self, tmp_path):
        for folder in (tmp_path, tmp_path / "absent"):
            with pytest.raises(DataError, match=f"no CIFAR-10 in {folder}: .*, got none"):
                load_cifar10(folder)

    def test_images_of_something_else(self, tmp_path):
        pytest.importorskip("PIL")
        write_files(tmp_path, image_files())
        with pytest.raises(DataError, match=r"is not CIFAR-10: .*got \(5, 2, 2, \(4, 5, 3\)\)"):
            load_cifar10(tmp_path)

    def test_no_network_says_where_to_put_the_file(self, tmp_path, monkeypatch):
        pooch = pytest.importorskip("pooch")

        def refuse(*args, **kwargs):
            raise ConnectionError("no route to host")

        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
        monkeypatch.setattr(pooch, "retrieve", refuse)
        with pytest.raises(DataError, match=f"put cifar-10-binary.*into {tmp_path}.*--data-dir"):
            load_cifar10()

    def test_download(self, batches, tmp_path, monkeypatch):
        pooch = pytest.importorskip("pooch")

        def retrieve(url, known_hash, fname, path):
            path.mkdir(parents=True)
            write_archive(path / fname, release("binary", batches))

        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
        monkeypatch.setattr(pooch, "retrieve", retrieve)
        assert len(load_cifar10().train_inputs) == 5 * IMAGES

    def test_real_images(self):
        pytest.importorskip("PIL")
        folder = Path(os.environ.get("NUMBADROP_DATA") or "absent") / "cifar10"
        if not folder.is_dir():
            pytest.skip("NUMBADROP_DATA names no folder with cifar10/ in it")
        data = load_cifar10(folder)
        assert (len(data.train_inputs), len(data.test_inputs)) == (50000, 10000)
        assert (np.bincount(data.test_labels) == 1000).all()
        # Known means of the channels, to what JPEG changes of them.
        means = data.train_inputs.reshape(-1, 3).mean(axis=0) / 255
        np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-4)


class Hostile:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class TestReadPickle:
    @pytest.mark.parametrize("protocol", [3, 4])
    def test_arrays_of_bytes(self, protocol):
        array = np.arange(12, dtype=np.uint8).reshape(3, 4)
        for stored in (array, np.asfortranarray(array)):
            loaded = read_pickle("mine", pickle.dumps({"data": stored, 1: [2.5]}, protocol))
            np.testing.assert_array_equal(loaded["data"], array)
            assert loaded[1] == [2.5]

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_nothing_runs(self, protocol, tmp_path):
        trace = tmp_path / "trace"
        for hostile in (
            Hostile(os.system, f"touch {trace}"),
            Hostile(exec, f"open({str(trace)!r}, 'w')"),
            Hostile(getattr, b"", "join"),
            Hostile(np.fromfile, str(trace)),
        ):
            for content in (hostile, {b"data": hostile}, [np.zeros(2, np.uint8), hostile]):
                with pytest.raises(DataError, match="mine: not a readable pickle, it asks for"):
                    read_pickle("mine", pickle.dumps(content, protocol))
        assert not trace.exists()

    @given(content=st.binary(max_size=60), data=st.data())
    def test_noise(self, content, data):
        good = python2_pickle({b"data": np.zeros((2, 2), np.uint8), b"labels": [0, 1]})
        at = data.draw(st.integers(0, len(good)))
        for noise in (content, good[:at] + content, good[:at] + content + good[at:]):
            with suppress(DataError):
                read_pickle("mine", noise)


def encoded(pixels: np.ndarray, mode: str = "RGB", format: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format)
    return file.getvalue()


def random_pixels(seed: int, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


def image_files(test: str = "test", **options) -> dict[str, bytes]:
    """Return two classes of images, the last image first, among files that are not images."""
    names = ("train/b/2.png", "train/b/10.png", "train/a/1.PNG", "train/a/2.png", "train/a/3.png")
    names += (f"{test}/b/1.png", f"{test}/a/1.png")
    files = {name: encoded(random_pixels(seed), **options) for seed, name in enumerate(names)}
    return {**files, "README.md": b"", "train/a/.2.png": b"", "train/a/notes.txt": b""}


EXPECTED = [2, 3, 4, 1, 0]  # the seeds of the training images in the order of their names


class TestImageFolder:
    @pytest.fixture(autouse=True)
    def _pillow(self):
        pytest.importorskip("PIL")

    @pytest.mark.parametrize("test", ["test", "val", "valid"])
    @pytest.mark.parametrize("load", [load_image_folder, load_path])
    def test_folder(self, test, load, tmp_path):
        write_files(tmp_path, image_files(test))
        data = load(tmp_path)
        wanted = [random_pixels(seed).ravel() for seed in EXPECTED]
        np.testing.assert_array_equal(data.train_inputs, wanted)
        assert data.train_inputs.dtype == np.uint8
        np.testing.assert_array_equal(data.train_labels, [0, 0, 0, 1, 1])
        np.testing.assert_array_equal(data.test_labels, [0, 1])
        assert (data.classes, data.divisor, data.image_shape) == (2, 255.0, (4, 5, 3))

    @pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "zip"])
    @pytest.mark.parametrize("top", ["", "./", "mine/"])
    @pytest.mark.parametrize("load", [load_image_folder, load_path])
    def test_archive(self, suffix, top, load, tmp_path):
        path = tmp_path / f"images.{suffix}"
        write_archive(path, {f"{top}{name}": file for name, file in image_files().items()})
        data = load(path)
        wanted = [random_pixels(seed).ravel() for seed in EXPECTED]
        np.testing.assert_array_equal(data.train_inputs, wanted)
        assert list(tmp_path.iterdir()) == [path]

    def test_a_zip_file_with_the_separators_of_windows(self, tmp_path):
        path = tmp_path / "images.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {"train/": b"", **image_files()}.items():
                member = zipfile.ZipInfo("name")
                member.filename, member.create_system = name.replace("/", "\\"), 0
                archive.writestr(member, content)
        data = load_image_folder(path)
        wanted = [random_pixels(seed).ravel() for seed in EXPECTED]
        np.testing.assert_array_equal(data.train_inputs, wanted)

    def test_many_images_keep_their_order(self, tmp_path):
        files = {f"train/a/{n:04}.bmp": encoded(np.full((2, 2, 3), n % 251, np.uint8), format="BMP")
                 for n in range(450)}  # fmt: skip
        write_files(tmp_path, {**files, "test/a/0.bmp": files["train/a/0000.bmp"]})
        data = load_image_folder(tmp_path)
        np.testing.assert_array_equal(data.train_inputs[:, 0], np.arange(450) % 251)

    @pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK"])
    def test_other_modes_become_colour(self, mode, tmp_path):
        format = "GIF" if mode == "P" else "TIFF" if mode == "CMYK" else "PNG"
        write_files(tmp_path, image_files(mode=mode, format=format))
        assert load_image_folder(tmp_path).image_shape == (4, 5, 3)

    def test_grey_images_have_one_channel_unless_one_is_coloured(self, tmp_path):
        files = image_files(mode="L")
        write_files(tmp_path, files)
        data = load_image_folder(tmp_path)
        assert data.image_shape == (4, 5, 1)
        (tmp_path / "test/b/1.png").write_bytes(encoded(random_pixels(9)))
        mixed = load_image_folder(tmp_path)
        assert mixed.image_shape == (4, 5, 3)
        np.testing.assert_array_equal(mixed.train_inputs, data.train_inputs.repeat(3, axis=1))

    def test_transparent_palette(self, tmp_path):
        from PIL import Image

        files = image_files()
        file = io.BytesIO()
        image = Image.fromarray(random_pixels(2)).convert("P")
        image.save(file, "PNG", transparency=bytes(range(256)))
        write_files(tmp_path, {**files, "train/a/1.PNG": file.getvalue()})
        data = load_image_folder(tmp_path)
        np.testing.assert_array_equal(data.train_inputs[0], np.ravel(image.convert("RGB")))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train/b/2.png": b"GIF89a"}, "train/b/2.png: not a readable image"),
            ({"train/b/2.png": b""}, "train/b/2.png: not a readable image"),
            ({"train/c/1.png": b"?"}, "the classes of train and test must be the same, c is not"),
            ({"test/b/1.png": None}, "the classes of train and test must be the same, b is not"),
            ({"test/b/1.png": None, "test/a/1.png": None}, "no images in test/CLASS/"),
        ],
    )
    def test_bad_files(self, change, message, tmp_path):
        files = {k: v for k, v in {**image_files(), **change}.items() if v is not None}
        write_files(tmp_path, files)
        with pytest.raises(DataError, match=f"{tmp_path}.{{1,2}}{message}"):
            load_image_folder(tmp_path)

    def test_a_mix_of_sizes(self, tmp_path):
        odd = encoded(random_pixels(0, height=6, width=7))
        write_files(tmp_path, {**image_files(), "test/a/1.png": odd})
        with pytest.raises(
            DataError,
            match=f"{tmp_path}/test/a/1.png: must be of 5 x 4 pixels as train/.*PNG is, got 7 x 6",
        ):
            load_image_folder(tmp_path)

    def test_more_than_8_bits(self, tmp_path):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(np.zeros((4, 5), np.uint16)).save(file, "PNG")
        write_files(tmp_path, {**image_files(mode="L"), "train/a/2.png": file.getvalue()})
        with pytest.raises(DataError, match=r"train/a/2.png: .* more than 8 bits a channel \(mode"):
            load_image_folder(tmp_path)

    def test_truncated_image(self, tmp_path):
        pixels = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
        files = {"train/a/1.jpg": encoded(pixels, format="JPEG")}
        files["test/a/1.jpg"] = files["train/a/1.jpg"][:-200]
        write_files(tmp_path, files)
        with pytest.raises(DataError, match=r"test/a/1.jpg: not a readable image, .*truncated"):
            load_image_folder(tmp_path)

    @pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "zip"])
    def test_damaged_archive(self, suffix, tmp_path):
        path = tmp_path / f"images.{suffix}"
        write_archive(path, image_files())
        content = path.read_bytes()
        for length in (0, 10, len(content) // 3, len(content) // 2, len(content) - 10):
            path.write_bytes(content[:length])
            # The end of a plain tar archive is two blocks of zeros and more that only pad it.
            if suffix != "tar" or length < len(content) - 10:
                with pytest.raises(DataError, match=f"{path}: not a readable archive"):
                    load_image_folder(path)

    def test_a_damaged_header(self, tmp_path):
        path = tmp_path / "images.tar"
        write_archive(path, image_files())
        content = bytearray(path.read_bytes())
        content[content.index(b"train/a/2.png")] = 0
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: not a readable archive"):
            load_image_folder(path)

    def test_an_archive_never_reaches_out_of_itself(self, tmp_path):
        secret = tmp_path / "secret.png"
        secret.write_bytes(b"secret")
        path = tmp_path / "images.tar"
        with tarfile.open(path, "w") as archive:
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member = tarfile.TarInfo("train/a/1.png")
                member.type, member.linkname = kind, str(secret)
                archive.addfile(member)
        assert list(read_archive(path)) == []

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="absent: no such folder, nor a tar or zip archive"):
            load_image_folder(tmp_path / "absent")


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move an image pixel by pixel."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[y, x] = image[y - down, x - right]
    return result


class TestAugmentation:
    @given(
        shift=st.integers(0, 3),
        flip=st.booleans(),
        shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
        dtype=st.sampled_from([np.uint8, np.float32, np.float64]),
        seed=st.integers(0, 1000),
    )
    def test_every_image_is_a_moved_or_mirrored_copy(self, shift, flip, shape, dtype, seed):
        rng = np.random.default_rng(seed)
        images = rng.integers(1, 255, size=(6, *shape)).astype(dtype)
        before = images.copy()
        changed = Augmentation(shift, flip)(images, rng)
        np.testing.assert_array_equal(images, before)
        assert (changed.dtype, changed.shape) == (images.dtype, images.shape)
        steps = range(-shift, shift + 1)
        for image, result in zip(images, changed, strict=True):
            candidates = [moved(image, down, right) for down in steps for right in steps]
            if flip:
                candidates += [candidate[:, ::-1] for candidate in candidates]
            assert any((result == candidate).all() for candidate in candidates)
        if not shift and not flip:
            np.testing.assert_array_equal(changed, images)

    def test_all_moves_are_equally_likely_and_half_are_mirrored(self):
        image = np.zeros((5, 5, 1), np.uint8)
        image[2, 2:4, 0] = 1, 2
        changed = Augmentation(1, flip=True)(
            np.broadcast_to(image, (18_000, 5, 5, 1)), np.random.default_rng(0)
        )
        kinds, counts = np.unique(changed.reshape(18_000, 25), axis=0, return_counts=True)
        assert len(kinds) == 18
        # Four standard deviations of a count are 123.
        np.testing.assert_allclose(counts, 1000, atol=123)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="shift must not be negative, got -1"):
            Augmentation(-1)


IMAGES_8 = np.random.default_rng(1).integers(1, 256, size=(50, 48), dtype=np.uint8)


def augmented(inputs=IMAGES_8, batch_size=8, seed=3, augmentation=None, image_shape=(4, 4, 3)):
    return Minibatches(
        inputs,
        np.arange(len(inputs)),
        batch_size,
        seed,
        divisor=255,
        augmentation=augmentation or Augmentation(1, flip=True),
        image_shape=image_shape,
    )


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "numbadrop-data" in thread.name]


class TestAugmentedBatches:
    @given(seed=st.integers(0, 2**40), epoch=st.integers(0, 99), start=st.integers(0, 7))
    @settings(max_examples=30)
    def test_a_batch_depends_on_seed_epoch_and_number_only(self, seed, epoch, start):
        whole = list(augmented(seed=seed).batches(epoch))
        rest = list(augmented(seed=seed).batches(epoch, start))
        assert len(rest) == 7 - start
        for (x, y), (again, labels) in zip(whole[start:], rest, strict=True):
            assert x.dtype == np.float32
            assert x.tobytes() == again.tobytes()
            np.testing.assert_array_equal(y, labels)

    def test_seeds_epochs_and_batches_differ(self):
        same = np.tile(IMAGES_8[:1], (16, 1))
        drawn = [
            x.tobytes()
            for seed in range(3)
            for epoch in range(3)
            for x, _ in augmented(same, seed=seed).batches(epoch)
        ]
        assert len(set(drawn)) == len(drawn) == 18

    def test_order_and_values_are_those_without_augmentation(self):
        plain = Minibatches(IMAGES_8, np.arange(50), 8, 3, divisor=255)
        nothing = augmented(augmentation=Augmentation(0))
        for (x, y), (same, labels) in zip(plain.batches(1), nothing.batches(1), strict=True):
            assert x.tobytes() == same.tobytes()
            np.testing.assert_array_equal(y, labels)
            np.testing.assert_array_equal(x, np.float32(1 / 255) * IMAGES_8[y])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"image_shape": None}, "augmentation needs images: image_shape is None"),
            (
                {"image_shape": (4, 4, 1)},
                r"image_shape must be that of an input of shape \(48,\), got \(4, 4, 1\)",
            ),
            (
                {"augmentation": Augmentation(4)},
                r"shift must be below the sides of an image, got 4 for images of .*\(4, 4, 3\)",
            ),
        ],
    )
    def test_bad_input(self, change, message):
        with pytest.raises(ValueError, match=message):
            augmented(**change)

    def test_a_data_set_without_images(self):
        data = Dataset("mine", IMAGES_8, np.zeros(50, int), IMAGES_8, np.zeros(50, int), 1)
        with pytest.raises(DataError, match="mine: augmentation needs images"):
            data.minibatches(8, augmentation=Augmentation(1))

    def test_plain_data_need_no_thread(self):
        batches = Minibatches(IMAGES_8, np.arange(50), 8).batches(0)
        next(batches)
        assert not workers()


class TestAhead:
    def test_order(self):
        assert list(ahead(lambda n: n * n, range(50))) == [n * n for n in range(50)]
        assert list(ahead(str, [])) == []
        assert not workers()

    def test_never_far_ahead(self):
        started = []
        results = ahead(started.append, range(20))
        assert not workers()  # nothing is started before the first result is asked for
        assert not started
        for taken, _ in enumerate(results, 1):
            give_up = time.monotonic() + 10
            while len(started) < min(20, taken + DEPTH) and time.monotonic() < give_up:
                time.sleep(0.001)
            time.sleep(0.005)
            assert len(started) == min(20, taken + DEPTH)

    def test_an_exception_stands_in_place_of_its_result(self):
        results = ahead(lambda n: 1 // (3 - n), range(9))
        assert [next(results) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert not workers()

    @pytest.mark.parametrize("end", ["break", "interrupt", "close", "drop"])
    def test_an_abandoned_iteration_ends_its_thread(self, end):
        def iterate():
            for _ in augmented().batches(0):
                assert len(workers()) == 1
                if end == "break":
                    break
                raise KeyboardInterrupt

        if end in ("close", "drop"):
            batches = augmented().batches(0)
            next(batches)
            assert len(workers()) == 1
            if end == "close":
                batches.close()
            else:
                del batches
        elif end == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                iterate()
        else:
            iterate()
        assert not workers()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_after_a_fork(self):
        wanted = [x.tobytes() for x, _ in augmented().batches(0)]
        child = os.fork()
        if child == 0:
            same = [x.tobytes() for x, _ in augmented().batches(0)] == wanted
            os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
