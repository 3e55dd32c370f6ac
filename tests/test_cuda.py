"""Nets on a GPU: arrays, what is refused, and training; under the simulator, or on a GPU."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
from numba import cuda

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
if not SIMULATED and not cuda.is_available():
    pytest.skip("no GPU, and NUMBA_ENABLE_CUDASIM is not 1", allow_module_level=True)

from numbadrop import kernels  # noqa: E402
from numbadrop.autograd import Block, Variable  # noqa: E402
from numbadrop.data import artificial  # noqa: E402
from numbadrop.errors import DeviceError, DeviceMemoryError, MissingExtraError  # noqa: E402
from numbadrop.index_set import IndexSet  # noqa: E402
from numbadrop.kernels import to_device  # noqa: E402
from numbadrop.kernels.cuda import DeviceArray, driver  # noqa: E402
from numbadrop.nn import (  # noqa: E402
    Activation,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    BatchwiseDropout,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
    Sigmoid,
    Tanh,
    Unflatten,
    cross_entropy,
    mse,
)
from numbadrop.optim import NAG, SGD, Adam, AdamW  # noqa: E402
from numbadrop.train import evaluate, fit, load_checkpoint  # noqa: E402

F8 = np.float64


@pytest.fixture(autouse=True, scope="module")
def _short_turns() -> Any:
    """The simulator's main thread spins until its turn is over, at each barrier."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# --------------------------------------------------------------------------------- arrays

NUMPY_CODE = [
    lambda x, row, units: x + row,
    lambda x, row, units: 2 - x * row,
    lambda x, row, units: x / 3,
    lambda x, row, units: -abs(x),
    lambda x, row, units: x * (x > 0),
    lambda x, row, units: np.maximum(x, 0),
    lambda x, row, units: np.minimum(x, row),
    lambda x, row, units: np.where(x > 0, x, x * 0.1),
    lambda x, row, units: np.where(x < 0, x, 1),
    lambda x, row, units: np.tanh(x),
    lambda x, row, units: np.sqrt(np.exp(x)),
    lambda x, row, units: np.square(x),
    lambda x, row, units: np.zeros_like(x),
    lambda x, row, units: np.ones_like(row),
    lambda x, row, units: x.sum(),
    lambda x, row, units: x.sum(axis=0),
    lambda x, row, units: x.sum(axis=(0, 2)),
    lambda x, row, units: x.sum(axis=(1, 2), keepdims=True),
    lambda x, row, units: np.sum(x, axis=-1),
    lambda x, row, units: x.transpose(2, 0, 1),
    lambda x, row, units: x.reshape(-1, 4),
    lambda x, row, units: x[..., units],
    lambda x, row, units: row[units],
    lambda x, row, units: x * row.astype(np.float64),
    lambda x, row, units: np.zeros((2, 3), np.float32, like=x),
    lambda x, row, units: x * np.float64(2),
    lambda x, row, units: np.float32(2) / x,
    lambda x, row, units: x + np.array(3.0),
    lambda x, row, units: x * True - np.bool_(True),
    lambda x, row, units: np.maximum(x, np.int64(1)),
]


@pytest.mark.parametrize("code", NUMPY_CODE)
@pytest.mark.parametrize("rows", [3, 150])
def test_numpy_code_is_the_same_on_both_sides(rng, code, rows):
    x, row = rng.standard_normal((rows, 2, 4), np.float32), rng.standard_normal(4, np.float32)
    units = IndexSet([0, 3], 4)
    wanted = np.asarray(code(x, row, units))
    got = code(to_device(x), to_device(row), units)
    assert isinstance(got, DeviceArray)
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got.to_host(), wanted, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("axis", [2, -3, (0, 2), (0, -2)])
def test_sums_over_axes_that_are_not_there(axis):
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match="axis"):
        x.sum(axis)
    with pytest.raises(ValueError, match="axis"):
        to_device(x).sum(axis)


def test_writes_in_place(rng):
    host = rng.standard_normal((3, 2, 4))
    device = to_device(host)
    units = IndexSet([1, 2], 4)
    block = np.ix_([0, 2], [1], [0, 3])
    values = rng.standard_normal((2, 1, 2))
    for x, put in ((host, values), (device, to_device(values))):
        x *= 2
        np.subtract(1, x, out=x)
        x[..., units] = 7.0
        x[block] = put
    np.testing.assert_array_equal(device.to_host(), host)
    device[...] = np.zeros((3, 2, 4), np.float32)
    assert not device.to_host().any()


@pytest.mark.parametrize("key", [..., np.ix_([0, 2], [1, 2]), (..., IndexSet([1, 2], 4))])
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (3,), (7, 2)], ids=str)
def test_what_does_not_fit_is_not_assigned(key, shape):
    x = to_device(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="shape"):
        x[key] = to_device(np.ones(shape))
    assert not x.to_host().any()


def test_a_nan_passes_a_maximum():
    x = to_device(np.array([np.nan, -1.0, 2.0]))
    np.testing.assert_array_equal(np.maximum(x, 0).to_host(), [np.nan, 0, 2])
    np.testing.assert_array_equal(np.maximum(0, x).to_host(), [np.nan, 0, 2])


def test_empty_arrays():
    x = to_device(np.ones((0, 3), np.float32))
    np.testing.assert_array_equal(x.sum(axis=0).to_host(), np.zeros(3))
    assert (x + 1).shape == (0, 3)
    assert kernels.gathered_matmul(x, to_device(np.ones((3, 2), np.float32))).shape == (0, 2)


def test_nothing_moves_by_itself(rng):
    host = rng.standard_normal((2, 3))
    device = to_device(host)
    for silent in (
        lambda: np.asarray(device),
        lambda: device + host,
        lambda: np.where(host > 0, device, 0),
        lambda: bool(device),
    ):
        with pytest.raises(TypeError, match="to_host"):
            silent()
    with pytest.raises(
        TypeError, match=r"numpy\.add got operand 1 on the host.*operand 0 on the GPU"
    ):
        device + host
    with pytest.raises(TypeError, match=r"numpy\.median does not run on the GPU"):
        np.median(device)


class Foreign:
    """An array of another library."""

    def __init__(self, array: DeviceArray, **changes: Any) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__ | changes


def test_foreign_arrays_are_not_copied(rng):
    x, w = to_device(rng.standard_normal((2, 3))), to_device(rng.standard_normal((3, 4)))
    view = to_device(Foreign(x))
    assert isinstance(view, DeviceArray)
    view *= 0
    assert not x.to_host().any()
    x[...] = 1.0
    got = kernels.gathered_matmul(Foreign(x), Foreign(w)).to_host()
    np.testing.assert_allclose(got, np.ones((2, 3)) @ w.to_host())
    net = Linear(3, 2, dtype=F8).to("cuda")
    assert net(Foreign(x)).value.shape == (2, 2)
    with pytest.raises(ValueError, match=r"must be C-contiguous, got strides \(8, 16\)"):
        to_device(Foreign(x, shape=(2, 3), strides=(8, 16)))
    with pytest.raises(TypeError, match="x must be float32 or float64, got int64"):
        kernels.gathered_matmul(to_device(np.ones((2, 3), np.int64)), w)


@pytest.mark.parametrize("beside", [False, True])
def test_what_was_sent_is_what_there_was(rng, beside):
    """The host array changes at once, and pinned memory is used again and again."""
    host = np.zeros(600_000, np.float32)
    sent = []
    for number in range(60):
        size = int(rng.integers(1, len(host)))
        host[:size] = number
        sent.append(to_device(host[:size], beside=beside))
        host[:size] = -1
        if number % 3 == 0:  # The next one to be sent has its memory, which is still to be read.
            doubled = to_device(np.full(size, 1.0, np.float32))
            sent[-1] = sent[-1] * doubled
    for number, array in enumerate(sent):
        np.testing.assert_array_equal(array.to_host(), number)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint8", "uint64", "float16"])
def test_numbers_that_are_not_of_kernels(dtype):
    host = np.array([[1, 0, 1], [0, 1, 1]], dtype)
    x = to_device(host)
    np.testing.assert_array_equal(x.copy().to_host(), host)
    for axes in ((1, 0), ()):
        np.testing.assert_array_equal(x.transpose(*axes).to_host(), host.T)
    with pytest.raises(ValueError, match=r"^axes must be those of 2 in some order, got \(0, 0\)"):
        x.transpose(0, 0)
    np.testing.assert_array_equal(x.astype(np.float32).to_host(), host.astype(np.float32))
    np.testing.assert_array_equal((x > 0).to_host(), host > 0)
    for axis in (None, 0, ()):
        assert x.sum(axis).dtype == host.sum(axis).dtype
        np.testing.assert_array_equal(x.sum(axis).to_host(), host.sum(axis))
    x[...] = 1
    np.testing.assert_array_equal(x.to_host(), np.ones((2, 3), dtype))


def test_the_bytes_of_another_machine_are_swapped():
    x = to_device(np.arange(3, dtype=">f4"))
    assert x.dtype == np.float32
    np.testing.assert_array_equal((x + 1).to_host(), [1, 2, 3])


@pytest.mark.parametrize("host", [np.array([None, 1]), np.array(["a"]), np.ones(2, complex)])
def test_what_is_no_real_number_is_refused(host):
    with pytest.raises(TypeError, match="must hold native numbers or booleans, got"):
        to_device(host)


def test_shapes_of_new_arrays():
    like = to_device(np.ones(1))
    assert np.zeros(np.int64(3), like=like).shape == (3,)
    assert np.zeros([2, 1], like=like).shape == (2, 1)
    with pytest.raises(ValueError, match="no negative length"):
        np.zeros((2, -1), like=like)
    with pytest.raises(IndexError, match=r"indices must be in \[0, 2\), got \[7\]"):
        np.zeros((2, 3), like=like)[np.ix_([7], [0])] = 1.0


def test_an_index_set_is_sent_once(monkeypatch):
    from numbadrop.kernels.cuda import array

    sent = []
    send = array.send
    monkeypatch.setattr(array, "send", lambda host, *to: (sent.append(host), send(host, *to)))
    units = IndexSet([0, 2], 3)
    x = to_device(np.ones((2, 3)))
    del sent[:]
    for _ in range(3):
        kernels.take_columns(x, units)
    assert len(sent) == 1


# ------------------------------------------------------------------------ what is refused


def test_a_mix_is_refused_with_both_named():
    host, device = np.ones((2, 2)), to_device(np.ones((2, 2)))
    images, gpu_images = np.ones((1, 2, 2, 1)), to_device(np.ones((1, 2, 2, 1)))
    row, taps = np.ones(2), to_device(np.ones((1, 1, 1, 1)))
    mixes = [
        ("x and w", lambda: kernels.gathered_matmul(host, device)),
        ("x and w", lambda: kernels.gathered_matmul(device, host)),
        ("g and w", lambda: kernels.gathered_matmul_t(host, device)),
        ("b and w", lambda: kernels.gathered_linear(device, device, row)),
        ("x and g", lambda: kernels.matmul_at(host, device)),
        ("out and x", lambda: kernels.matmul_at(device, device, out=host)),
        ("out and x", lambda: kernels.scatter_matmul(device, device, out=host)),
        ("x and w", lambda: kernels.gathered_conv2d(images, gpu_images)),
        ("bias and w", lambda: kernels.gathered_conv2d(gpu_images, taps, bias=np.ones(1))),
        ("g and y", lambda: kernels.rectifier_gradient(host, device)),
        ("mean and x", lambda: kernels.batch_norm(device, row, row)),
        ("target and prediction", lambda: mse(Variable(device), host)),
    ]
    for names, mixed in mixes:
        with pytest.raises(TypeError, match=f"^{names} must lie in one memory, got .* on the GPU"):
            mixed()
    with pytest.raises(ValueError, match=r"^out overlaps x"):
        kernels.gathered_matmul(device, to_device(host), out=device)


def test_a_net_on_a_gpu_refuses_host_input():
    with pytest.raises(TypeError, match=r"x on the host and w on the GPU: .*kernels\.to_device"):
        Linear(2, 2).to("cuda")(np.ones((1, 2), np.float32))
    with pytest.raises(TypeError, match="x and the layer must lie in one memory"):
        BatchNorm1d(2).to("cuda")(np.ones((4, 2), np.float32))
    layer = Linear(2, 2).to("cuda")
    layer.weight.grad = np.ones((2, 2), np.float32)
    optimizer = SGD(layer.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="gradient of parameter 0 and its value must lie in one"):
        optimizer.step()


def test_labels_of_the_host_are_checked():
    logits = to_device(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"labels\[1\] is 3"):
        kernels.cross_entropy(logits, [0, 3])
    with pytest.raises(TypeError, match="labels must be integers"):
        kernels.cross_entropy(logits, [0.0, 1.0])
    losses = kernels.cross_entropy(logits, to_device(np.array([0, 3]))).to_host()
    np.testing.assert_allclose(losses, [np.log(3), np.nan])


def test_a_full_memory_leaves_the_net_as_it_was(monkeypatch):
    net = Sequential(Linear(3, 5), ReLU(), Linear(5, 2)).seed(0)
    before = net.state_dict()
    left = [3]

    def full(shape: Any, dtype: Any) -> Any:
        if left[0] == 0:
            raise RuntimeError("[CUresult.CUDA_ERROR_OUT_OF_MEMORY] Call to cuMemAlloc")
        left[0] -= 1
        return take(shape, dtype)

    take = driver._take
    monkeypatch.setattr(driver, "_take", full)
    with pytest.raises(DeviceMemoryError, match=r"no memory left for .* \(2,\) and float32, 8 "):
        net.to("cuda")
    assert net.device == "cpu"
    assert net(np.ones((1, 3), np.float32)).value.shape == (1, 2)
    monkeypatch.undo()
    net.to("cuda")
    x = to_device(np.ones((1, 3), np.float32))
    left[0] = 0
    monkeypatch.setattr(driver, "_take", full)
    with pytest.raises(MemoryError):
        net(x)
    net.to("cpu")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_host_array_is_written_without_other_memory(rng, monkeypatch):
    x = to_device(np.zeros((2, 3), np.float32))
    monkeypatch.setattr(driver, "_take", lambda *wanted: pytest.fail("memory was taken"))
    host = rng.standard_normal((2, 3))
    x[...] = host
    np.testing.assert_array_equal(x.to_host(), host.astype(np.float32))
    x[...] = host[0]
    np.testing.assert_array_equal(x.to_host(), np.stack([host[0]] * 2).astype(np.float32))


@pytest.mark.skipif(SIMULATED, reason="the simulator takes the memory of the host")
def test_more_memory_than_a_gpu_has():
    x = to_device(np.ones(3))
    with pytest.raises(DeviceMemoryError, match=r"for an array of shape \(4398046511104,\)"):
        DeviceArray.empty(1 << 42, np.uint8)
    np.testing.assert_array_equal((x + x).to_host(), np.full(3, 2.0))


@pytest.mark.skipif(SIMULATED, reason="PyTorch knows nothing of the simulator")
def test_memory_of_pytorch_is_shared():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("a PyTorch without CUDA")
    theirs = torch.ones(2, 3, device="cuda")
    ours = to_device(theirs)
    assert ours.address == theirs.data_ptr()
    ours[...] = 5.0
    assert theirs.sum().item() == 30
    assert torch.as_tensor(ours, device="cuda").data_ptr() == ours.address
    w = to_device(np.ones((3, 4), np.float32))
    np.testing.assert_array_equal(kernels.gathered_matmul(theirs, w).to_host(), np.full((2, 4), 15))
    with pytest.raises(ValueError, match="must be C-contiguous"):
        to_device(theirs.T)


def test_threads_that_send_come_and_go():
    for number in range(5):
        with ThreadPoolExecutor(1) as thread:
            array = thread.submit(to_device, np.full(1000, number), beside=True).result()
        np.testing.assert_array_equal(array.to_host(), number)


@pytest.mark.skipif(SIMULATED, reason="kernels of the simulator run one after the other")
def test_threads_share_a_gpu(rng):
    """Each trains a net of its own, which learns what it learns alone."""
    batches = [batch_of((7,), rng) for _ in range(20)]

    def learned(_: Any = None) -> Any:
        net = fully_connected()[0].seed(1).to("cuda")
        train(net, Adam(net.parameters(), lr=0.01), batches, to_device)
        return net.state_dict()

    alone = learned()
    with ThreadPoolExecutor(4) as threads:
        for state in threads.map(learned, range(4)):
            for name, value in state.items():
                np.testing.assert_array_equal(value, alone[name], err_msg=name)


def test_no_gpu_is_said_in_one_error(monkeypatch):
    def no_driver(shape: Any, dtype: Any) -> Any:
        raise driver.CudaSupportError(
            "Error at driver init:\n\nCUDA driver library cannot be found"
        )

    monkeypatch.setattr(driver, "_take", no_driver)
    with pytest.raises(DeviceError, match=r"^no GPU can be used: Error at driver init: CUDA.*pip"):
        Linear(2, 2).to("cuda")


def test_a_missing_package_is_said_in_one_error(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("numbadrop.kernels.cuda")]:
        monkeypatch.delitem(sys.modules, name)
    kernels.device.cuda.cache_clear()
    monkeypatch.setitem(sys.modules, "numba_cuda", None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=r'pip install "numbadrop\[cuda\]"'):
        to_device(np.ones(2))


def test_where_a_net_may_go():
    layer = Linear(2, 2)
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda', got 'gpu'"):
        layer.to("gpu")
    SGD(layer.parameters(), lr=0.1, momentum=0.9, inactive="catch_up")
    with pytest.raises(
        ValueError, match=r"^weight is held by an optimizer with inactive='catch_up'"
    ):
        layer.to("cuda")
    assert layer.device == "cpu"
    with pytest.raises(ValueError, match="catch_up' works on the host alone"):
        SGD(Linear(2, 2).to("cuda").parameters(), lr=0.1, momentum=0.9, inactive="catch_up")


# -------------------------------------------------------------------------------- training

BATCH, CLASSES = 5, 3


def fully_connected():
    block = Sequential(
        Linear(6, 4, dtype=F8), Tanh(), BatchwiseDropout(0.5), Linear(4, 6, dtype=F8)
    )
    return Sequential(
        BatchwiseDropout(0.2), Linear(7, 6, dtype=F8), LeakyReLU(0.1), BatchwiseDropout(0.5),
        Residual(block), BatchNorm1d(6, dtype=F8), Sigmoid(), BatchwiseDropout(0.3),
        Linear(6, CLASSES, dtype=F8),
    ), (7,)  # fmt: skip


def convolutional():
    return Sequential(
        Unflatten((2, 5, 6), "NCHW"),
        Conv2d(2, 4, 3, padding=1, dtype=F8), ReLU(), BatchwiseDropout(0.5), MaxPool2d(2),
        Conv2d(4, 5, (2, 1), dtype=F8), LeakyReLU(-0.2), BatchwiseDropout(0.4), Flatten(),
        Linear(15, CLASSES, dtype=F8),
    ), (60,)  # fmt: skip


def normalized():
    return Sequential(
        Conv2d(1, 4, 2, stride=2, bias=False, dtype=F8), BatchNorm2d(4, eps=1e-2, dtype=F8), ReLU(),
        BatchwiseDropout(0.5), AvgPool2d(2, 1), Residual(Conv2d(4, 4, 1, dtype=F8)),
        GlobalAvgPool2d(), Linear(4, CLASSES, dtype=F8),
    ), (6, 6, 1)  # fmt: skip


def independent():
    return Sequential(
        Dropout2d(0.3), Conv2d(2, 3, 2, dtype=F8), Tanh(), Flatten(), Dropout(0.5),
        Linear(12, CLASSES, dtype=F8),
    ), (3, 3, 2)  # fmt: skip


def test_running_statistics_of_another_type_than_the_moments():
    """These are float64, and on a device memory of one type read as another is other numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 4)).astype(np.float32)
    layer, sent = BatchNorm1d(4), BatchNorm1d(4).to("cuda")
    some = IndexSet([0, 2, 3], 4)
    layer(x, some), sent(to_device(x), some)
    for name in ("running_mean", "running_var"):
        ours = getattr(sent, name).value
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours.to_host(), getattr(layer, name).value, rtol=1e-6)


NETS = [fully_connected, convolutional, normalized, independent]
OPTIMIZERS = [
    lambda params: SGD(params, lr=0.02),
    lambda params: SGD(params, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda params: NAG(params, lr=0.02, momentum=0.9),
    lambda params: Adam(params, lr=0.01, eps=1e-3),
    lambda params: AdamW(params, lr=0.01, eps=1e-3, weight_decay=0.1),
]


def batch_of(shape, rng):
    return rng.standard_normal((BATCH, *shape)), rng.integers(0, CLASSES, BATCH)


def train(net, optimizer, batches, send):
    losses = []
    for x, y in batches:
        loss = cross_entropy(net(send(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-9, atol=1e-11, err_msg=name)


@pytest.mark.parametrize(
    ("make", "optimizer"), [*((net, OPTIMIZERS[1]) for net in NETS),
                            *((fully_connected, rule) for rule in OPTIMIZERS)]
)  # fmt: skip
def test_training_is_that_of_the_cpu(rng, make, optimizer):
    """The same seed draws the same patterns, so that all numbers are the same, to rounding."""
    (net, shape), (gpu_net, _) = make(), make()
    net, gpu_net = net.seed(1), gpu_net.seed(1).to("cuda")
    rule, gpu_rule = optimizer(net.parameters()), optimizer(gpu_net.parameters())
    batches = [batch_of(shape, rng) for _ in range(3)]
    losses = train(net, rule, batches, np.asarray)
    gpu_losses = train(gpu_net, gpu_rule, batches, to_device)
    np.testing.assert_allclose(gpu_losses, losses, rtol=1e-10)
    assert_same_state(net.state_dict(), gpu_net.state_dict())
    assert_same_state(rule.state_dict(), gpu_rule.state_dict())
    x = batches[0][0]
    scores = gpu_net.eval()(to_device(x)).value
    np.testing.assert_allclose(scores.to_host(), net.eval()(x).value, rtol=1e-9)


class MaskedDropout(Module):
    """Draws the same units, but sets the others to zero: the dense net of the invariant."""

    unitwise = True

    def __init__(self, p):
        self.p = p

    def __call__(self, x, units=None):
        pattern = BatchwiseDropout.draw(self, x.units)
        mask = np.asarray(pattern.units.mask() * pattern.scale, like=x.value)
        return Activation(x.values * mask, x.units)


def test_a_step_on_submatrices_is_the_dense_masked_step(rng):
    def net(dropout):
        return Sequential(
            Linear(7, 8, dtype=F8), ReLU(), dropout(0.5), Linear(8, 6, dtype=F8), ReLU(),
            dropout(0.5), Linear(6, CLASSES, dtype=F8),
        ).seed(2).to("cuda")  # fmt: skip

    sub, dense = net(BatchwiseDropout), net(MaskedDropout)
    batches = [batch_of((7,), rng) for _ in range(3)]
    runs = [train(one, SGD(one.parameters(), lr=0.1), batches, to_device) for one in (sub, dense)]
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-10)
    assert_same_state(sub.state_dict(), dense.state_dict())


def test_weights_that_take_no_part_keep_their_bits(rng):
    net = Sequential(Linear(7, 8), ReLU(), BatchwiseDropout(0.5), Linear(8, CLASSES))
    net.seed(0).to("cuda")
    optimizer = Adam(net.parameters(), lr=0.1)
    before = net.state_dict()
    x, y = batch_of((7,), rng)
    train(net, optimizer, [(x.astype(np.float32), y)], to_device)
    block = net.layers[0].weight.grad
    assert isinstance(block, Block)
    kept = block.index[1].mask()
    after = net.state_dict()
    np.testing.assert_array_equal(after["0.weight"][:, ~kept], before["0.weight"][:, ~kept])
    np.testing.assert_array_equal(after["3.weight"][~kept], before["3.weight"][~kept])
    assert (after["0.weight"][:, kept] != before["0.weight"][:, kept]).any()


def test_the_sum_of_blocks_of_unequal_sets(rng):
    blocks = [
        Block(values, (IndexSet(rows, 3), IndexSet.all(4)))
        for values, rows in ((rng.standard_normal((2, 4)), [0, 2]), (np.ones((1, 4)), [1]))
    ]
    gpu_blocks = [Block(to_device(block.values), block.index) for block in blocks]
    total, wanted = gpu_blocks[0] + gpu_blocks[1], blocks[0] + blocks[1]
    assert total.index == wanted.index
    np.testing.assert_array_equal(total.values.to_host(), wanted.values)
    np.testing.assert_array_equal((gpu_blocks[0] * 0.5).values.to_host(), 0.5 * blocks[0].values)


def test_images_are_turned_once(rng, monkeypatch):
    x = rng.standard_normal((3, 2 * 4 * 5))
    sent, taken, take = to_device(x), [], driver._take
    monkeypatch.setattr(
        driver, "_take", lambda shape, dtype: (taken.append(shape), take(shape, dtype))[1]
    )
    layer = Unflatten((2, 4, 5), "NCHW")
    turned = layer(sent).value
    assert taken == [(3, 4, 5, 2)]
    np.testing.assert_array_equal(turned.to_host(), layer(x).value)


def test_mse_on_a_gpu(rng):
    x, target = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
    host, device = Variable(x, requires_grad=True), Variable(to_device(x), requires_grad=True)
    (mse(host, target) * 0.5).backward()
    loss = mse(device, to_device(target)) * 0.5
    assert isinstance(loss.value, DeviceArray)
    loss.backward()
    np.testing.assert_allclose(device.grad.to_host(), host.grad)


@pytest.mark.parametrize("make", [convolutional, independent])
def test_a_step_reads_nothing_back(rng, monkeypatch, make):
    net, shape = make()
    net.seed(0).to("cuda")
    optimizer = NAG(net.parameters(), lr=0.01)
    x, y = batch_of(shape, rng)
    sent = to_device(x)
    read: list[Any] = []
    monkeypatch.setattr(DeviceArray, "to_host", lambda self: read.append(self))
    monkeypatch.setattr(cuda, "synchronize", lambda: read.append(None))
    loss = cross_entropy(net(sent), y) * 2.0
    loss.backward()
    optimizer.step()
    assert not read


def test_a_step_sends_no_mask(rng, monkeypatch):
    from numbadrop.kernels.cuda import array

    net, shape = independent()
    net.seed(0).to("cuda")
    optimizer = SGD(net.parameters(), lr=0.01)
    x, y = batch_of(shape, rng)
    there = to_device(x)
    sent = []
    send = array.send
    monkeypatch.setattr(array, "send", lambda host, *to: (sent.append(host), send(host, *to)))
    train(net, optimizer, [(there, y)], lambda batch: batch)
    del sent[:]  # Among them, the first time, the places of the patches of a convolution.
    train(net, optimizer, [(there, y)], lambda batch: batch)
    assert [host.shape for host in sent] == [y.shape]  # The labels are on the host.


def test_state_goes_there_and_back(rng):
    net, shape = normalized()
    net.seed(0)
    optimizer = NAG(net.parameters(), lr=0.02, momentum=0.9)
    other, _ = normalized()
    other.seed(5).to("cuda")
    other_optimizer = NAG(other.parameters(), lr=0.02, momentum=0.9)
    batches = [batch_of(shape, rng) for _ in range(4)]
    train(net, optimizer, batches[:2], np.asarray)
    other.load_state_dict(net.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert all(type(value) is np.ndarray for value in other.state_dict().values())
    other.eval()
    net.eval()  # Without patterns, which two generators would draw.
    train(net, optimizer, batches[2:3], np.asarray)
    train(other, other_optimizer, batches[2:3], to_device)
    other.to("cpu")  # The slots follow at the next step.
    assert other.device == "cpu"
    train(net, optimizer, batches[3:], np.asarray)
    train(other, other_optimizer, batches[3:], np.asarray)
    assert_same_state(net.state_dict(), other.state_dict())
    assert_same_state(optimizer.state_dict(), other_optimizer.state_dict())
    with pytest.raises(ValueError, match="must be float64 of shape"):
        other.to("cuda").load_state_dict({n: v[:1] for n, v in net.state_dict().items()})


def test_seed_begins_anew_on_a_gpu():
    net, _ = normalized()
    wanted = net.seed(3).state_dict()
    assert_same_state(net.seed(1).to("cuda").seed(3).state_dict(), wanted)


# ------------------------------------------------------------------------------------ runs


def small_run(tmp_path, device, epochs, resume=False, **options):
    data = artificial(2, 24, 8, features=6, steps=3, noise=0.1)
    net = Sequential(Linear(6, 8), ReLU(), BatchwiseDropout(0.5), Linear(8, 2)).seed(0).to(device)
    optimizer = SGD(net.parameters(), lr=0.2, momentum=0.5)
    history = fit(net, optimizer, data, epochs=epochs, batch_size=8, output=tmp_path,
                  resume=resume, progress=False, **options)  # fmt: skip
    return net, data, history


def test_fit_learns_as_on_the_cpu(tmp_path):
    net, data, history = small_run(tmp_path / "gpu", "cuda", 3)
    _, _, cpu_history = small_run(tmp_path / "cpu", "cpu", 3)
    assert net.device == "cuda"
    assert history[-1].train_loss < history[0].train_loss
    for gpu, cpu in zip(history, cpu_history, strict=True):
        assert gpu.train_loss == pytest.approx(cpu.train_loss, rel=1e-4)
        assert gpu.test_error == cpu.test_error
    given = data.test_inputs, data.test_labels
    on_gpu = evaluate(net, *given, divisor=data.divisor, batch_size=3)
    on_cpu = evaluate(net.to("cpu"), *given, divisor=data.divisor)
    assert on_gpu.error == on_cpu.error
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-5)


def test_an_evaluation_waits_when_all_is_started(rng, monkeypatch):
    events = []

    class Noted(Linear):
        def __call__(self, *arguments, **named):
            events.append("started")
            return super().__call__(*arguments, **named)

    to_host = DeviceArray.to_host
    monkeypatch.setattr(
        DeviceArray, "to_host", lambda self: (events.append("waited"), to_host(self))[1]
    )
    net = Sequential(Noted(3, 2)).to("cuda")
    evaluate(net, rng.random((5, 3), np.float32), np.zeros(5, int), batch_size=2)
    assert events == ["started"] * 3 + ["waited"] * 3


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_resumes_on_either_side(tmp_path, first, second):
    small_run(tmp_path, first, 1)
    saved = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert all(type(value) is np.ndarray for value in saved.model.values())
    _, _, history = small_run(tmp_path, second, 2, resume=True)
    _, _, whole = small_run(tmp_path / "whole", second, 2)
    assert history[-1].train_loss == pytest.approx(whole[-1].train_loss, rel=1e-4)


def test_the_command_trains_on_a_gpu(tmp_path, monkeypatch, capsys):
    from numbadrop.cli import main
    from numbadrop.train import timing

    rng = np.random.default_rng(0)
    file = tmp_path / "data.npz"
    arrays = {f"x_{part}": rng.random((12, 4), np.float32) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(12) % 2 for part in ("train", "test")}
    np.savez(file, **arrays, **labels)
    monkeypatch.setattr(timing, "step_times", lambda *args, **named: {"with": 1.0, "without": 2.0})
    command = ["train", "--data", str(file), "--device", "cuda", "--hidden", "5", "--epochs", "1"]
    assert main([*command, "--batch-size", "6"]) == 0
    assert "on a GPU" in capsys.readouterr().out


def test_a_run_finds_its_kernels_compiled():
    from numbadrop.kernels.cuda import elements, product, update
    from numbadrop.train.recipe import Recipe
    from numbadrop.train.warmup import warm_up_net

    made = product.product_kernel, elements._elementwise, update._update_kernel
    for cached in (*made, product._prepared, elements._prepared):
        cached.cache_clear()
    data = artificial(2, 24, 8, features=6, steps=3, noise=0.1)
    recipe = Recipe(hidden=(8,), batch_size=8)
    warm_up_net(recipe, data)
    before = [cached.cache_info().misses for cached in made]
    assert min(before) > 0
    net, optimizer = recipe.build(data.features, data.classes)
    fit(net.to("cuda"), optimizer, data, epochs=1, batch_size=8, progress=False)
    assert [cached.cache_info().misses for cached in made] == before


def test_the_cpu_never_imports_cuda():
    from subprocess import run

    program = """
import sys
import numpy as np
import numbadrop
from numbadrop.nn import *
from numbadrop.optim import SGD
net = Sequential(Linear(4, 4), ReLU(), BatchwiseDropout(0.5), Linear(4, 2))
cross_entropy(net(np.ones((2, 4), np.float32)), [0, 1]).backward()
SGD(net.parameters(), lr=0.1).step()
of_cuda = ("numba.cuda", "numbadrop.kernels.cuda")
assert not [name for name in sys.modules if name.startswith(of_cuda)]
"""
    done = run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
