"""Nets on a GPU: under the simulator, or on a GPU if there is one."""

from __future__ import annotations

import copy
import os

import numpy as np
import pytest

from numbadrop.data import artificial
from numbadrop.errors import UserError
from numbadrop.index_set import IndexSet
from numbadrop.kernels import gathered_matmul, to_device
from numbadrop.nn import (
    AvgPool2d,
    BatchNorm2d,
    BatchwiseDropout,
    Conv2d,
    Dropout,
    Flatten,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
    Unflatten,
    cross_entropy,
    mse,
)
from numbadrop.optim import NAG, SGD, Adam, AdamW
from numbadrop.train import CHECKPOINT_NAME, evaluate, fit

pytest.importorskip("numba_cuda", reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
from numba import cuda

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1" and not cuda.is_available():
    pytest.skip("no GPU, and NUMBA_ENABLE_CUDASIM is not 1", allow_module_level=True)

from numbadrop.kernels.cuda import driver

OPTIMIZERS = [
    (SGD, {"lr": 0.1}),
    (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (NAG, {"lr": 0.1, "momentum": 0.9}),
    (Adam, {"lr": 0.01}),
    (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]
NETS = {
    "linear": lambda d: [BatchwiseDropout(0.2), Linear(7, 9, dtype=d), ReLU(),
                         BatchwiseDropout(0.5), Linear(9, 3, dtype=d)],
    "functions": lambda d: [Linear(7, 6, dtype=d), Tanh(), BatchwiseDropout(0.5),
                            Linear(6, 5, dtype=d), Sigmoid(), Linear(5, 4, dtype=d),
                            LeakyReLU(), Linear(4, 3, dtype=d)],
    "independent": lambda d: [Dropout(0.2), Linear(7, 5, dtype=d), ReLU(), Dropout(0.5),
                              Linear(5, 3, dtype=d)],
    "residual": lambda d: [Linear(7, 6, dtype=d), BatchwiseDropout(0.5),
                           Residual(Sequential(Linear(6, 5, dtype=d), ReLU(),
                                               BatchwiseDropout(0.4), Linear(5, 6, dtype=d))),
                           Linear(6, 3, dtype=d)],
    "images": lambda d: [Unflatten((2, 4, 4), "NCHW"), Conv2d(2, 4, 3, padding=1, dtype=d),
                         ReLU(), MaxPool2d(2), BatchwiseDropout(0.5),
                         Conv2d(4, 3, 2, stride=1, dtype=d), BatchNorm2d(3, dtype=d),
                         AvgPool2d(1), BatchwiseDropout(0.3), Flatten(), Linear(3, 3, dtype=d)],
}  # fmt: skip
FEATURES = {"images": 32}


def steps(net, make, options, x, labels, device, count=3):
    """Train a copy of a net, and return its losses and its state, in the memory of the host."""
    net = copy.deepcopy(net).to(device)
    optimizer = make(net.parameters(), **options)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = cross_entropy(net(to_device(x) if device == "cuda" else x), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses, net.state_dict(), optimizer.state_dict()


def assert_same(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, tolerance, tolerance, err_msg=name)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_net_learns_the_same_as_on_the_cpu(name, dtype):
    """The CPU's steps are tested against dense ones with masks."""
    make, options = OPTIMIZERS[2]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, FEATURES.get(name, 7))).astype(dtype)
    labels = rng.integers(3, size=5)
    net = Sequential(*NETS[name](dtype)).seed(1)
    here, there = (steps(net, make, options, x, labels, device) for device in ("cpu", "cuda"))
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(there[0], here[0], tolerance)
    assert_same(there[1], here[1], tolerance)
    assert_same(there[2], here[2], tolerance)


@pytest.mark.parametrize(("make", "options"), OPTIMIZERS)
def test_each_optimizer_leaves_inactive_weights_alone(make, options):
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((4, 7)), rng.integers(3, size=4)
    net = Sequential(*NETS["linear"](np.float64)).seed(1)
    here, there = (steps(net, make, options, x, labels, device, 2) for device in ("cpu", "cuda"))
    assert_same(there[1], here[1], 1e-10)
    assert_same(there[2], here[2], 1e-10)
    for name, before in net.state_dict().items():
        untouched = here[1][name] == before
        assert (there[1][name] == before)[untouched].all(), name


def test_mse():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4, 7)), rng.standard_normal((4, 2))
    losses = []
    for device in ("cpu", "cuda"):
        net = Sequential(Linear(7, 2, dtype=np.float64)).seed(0).to(device)
        optimizer = SGD(net.parameters(), lr=0.1)
        inputs, wanted = (x, target) if device == "cpu" else map(to_device, (x, target))
        for _ in range(2):
            optimizer.zero_grad()
            loss = mse(net(inputs), wanted)
            loss.backward()
            optimizer.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], 1e-10)


def test_there_and_back():
    net = Sequential(*NETS["images"](np.float32)).seed(0)
    before = net.state_dict()
    assert net.device == "cpu"
    assert net.to("cuda") is net
    assert net.device == "cuda"
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'tpu'"):
        net.to("tpu")
    there = net.parameters()[0].value
    assert net.to("cuda").parameters()[0].value is there
    saved = net.state_dict()
    net.load_state_dict({name: value + 1 for name, value in saved.items()})
    net.to("cpu")
    for name, value in net.state_dict().items():
        assert type(value) is np.ndarray
        np.testing.assert_array_equal(saved[name], before[name])
        np.testing.assert_array_equal(value, before[name] + 1)


def test_host_and_gpu_are_not_mixed():
    x, w = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match="x on the host and w on the GPU"):
        gathered_matmul(x, to_device(w))
    with pytest.raises(TypeError, match="out on the host and x on the GPU"):
        gathered_matmul(to_device(x), to_device(w), out=np.empty((2, 4), np.float32))
    net = Sequential(Linear(3, 2)).seed(0)
    optimizer = NAG(net.parameters(), lr=0.1, momentum=0.9)
    net.to("cuda")
    with pytest.raises(TypeError, match=r"x on the host and w on the GPU.*to_device"):
        net(x)
    cross_entropy(net(to_device(x)), [0, 1]).backward()
    with pytest.raises(TypeError, match="slots on the host and value on the GPU"):
        optimizer.step()
    with pytest.raises(ValueError, match="catch_up"):
        SGD(net.parameters(), lr=0.1, inactive="catch_up")
    with pytest.raises(TypeError, match="to_host"):
        np.asarray(to_device(x))


def test_arrays_of_others_are_taken_as_they_lie():
    mine = to_device(np.ones((2, 3), np.float32))

    class Theirs:
        __cuda_array_interface__ = mine.__cuda_array_interface__

    taken = to_device(Theirs())
    assert taken.address == mine.address
    w = to_device(np.ones((3, 4), np.float32))
    y = gathered_matmul(Theirs(), w, rows=IndexSet([0, 1, 2], 3), cols=[1, 3])
    np.testing.assert_array_equal(y.to_host(), np.full((2, 2), 3.0))
    net = Sequential(Linear(3, 2)).seed(0).to("cuda")
    assert net(Theirs()).value.shape == (2, 2)


def test_without_memory_the_model_goes_on_on_the_cpu(monkeypatch):
    net = Sequential(Linear(3, 2)).seed(0)

    def full(*_):
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(driver, "device_array", full)
    with pytest.raises(UserError, match="no memory left for an array of shape"):
        net.to("cuda")
    assert net.device == "cpu"
    assert net(np.ones((1, 3), np.float32)).value.shape == (1, 2)


def test_a_run_goes_on_on_the_other_device(tmp_path):
    data = artificial(2, 40, 20, features=10, steps=3, noise=0.1)

    def run(device, epochs, folder, resume):
        net = Sequential(
            Linear(10, 6), ReLU(), BatchwiseDropout(0.5), Linear(6, 2)
        ).seed(0).to(device)  # fmt: skip
        optimizer = NAG(net.parameters(), lr=0.1, momentum=0.9)
        history = fit(net, optimizer, data, epochs=epochs, batch_size=10, output=folder,
                      resume=resume, progress=False)  # fmt: skip
        return net, history

    run("cuda", 2, tmp_path / "a", False)
    mixed, history = run("cpu", 3, tmp_path / "a", True)
    whole, expected = run("cpu", 3, tmp_path / "b", False)
    assert (tmp_path / "a" / CHECKPOINT_NAME).is_file()
    assert_same(mixed.state_dict(), whole.state_dict(), 1e-4)
    assert history[-1].train_loss == pytest.approx(expected[-1].train_loss, 1e-3)
    assert history[-1].train_loss < history[0].train_loss
    there = evaluate(mixed.to("cuda"), data.test_inputs, data.test_labels)
    assert there.loss == pytest.approx(
        evaluate(mixed.to("cpu"), data.test_inputs, data.test_labels).loss, 1e-4
    )
