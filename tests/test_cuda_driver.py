"""The way to the driver of a GPU, with a driver that has none: its memory is the host's.

What is asked of it in the background it does as late as it may, so that what is used too early, or
again too early, is seen.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from struct import Struct
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from numbadrop.address import address_of
from numbadrop.errors import DeviceError, DeviceMemoryError

pytest.importorskip("numba_cuda", reason='numba-cuda is missing: pip install "numbadrop[cuda]"')
from numba import config

if config.ENABLE_CUDASIM:
    pytest.skip("the simulator has no driver", allow_module_level=True)

from numbadrop.kernels import to_device
from numbadrop.kernels.cuda import driver, launch, staging
from numbadrop.kernels.cuda.array import DeviceArray
from numbadrop.kernels.cuda.launch import Kernel
from numbadrop.kernels.cuda.pool import Pool

SUCCESS = 0


class Failure(int):
    """A status other than success."""

    name = "CUDA_ERROR_INVALID_CONTEXT"


class OutOfMemory(int):
    name = "CUDA_ERROR_OUT_OF_MEMORY"


class Gpus:
    """What Numba knows of several GPUs: a thread that asks, and has none, gets the first one."""

    def __init__(self) -> None:
        self._own = threading.local()

    @property
    def current(self) -> Any:
        return getattr(self._own, "device", None)

    def select(self, number: int) -> None:
        self._own.device = SimpleNamespace(id=number, compute_capability=(9, 0))

    def get(self) -> Any:
        if self.current is None:
            self.select(0)
        return self.current


class HostDriver:
    """The functions of the driver that are used, each with a status before what it returns."""

    def __init__(self, memory: int = 1 << 30) -> None:
        self.left = memory
        self.version = 99_000
        self.code_size = 0
        self.blocks: dict[int, Any] = {}
        self.waiting: dict[int, list[Callable[[], None]]] = {}
        self.reached: dict[int, tuple[int, int]] = {}
        self.launched: list[tuple[Any, ...]] = []
        self.streams = 0
        self.fails: set[str] = set()
        self._numbers = iter(range(1 << 12, 1 << 20))

    def finish(self, stream: int, count: int | None = None) -> None:
        """Do what waits in a stream: so much of all that was ever asked of it, or everything."""
        work = self.waiting.setdefault(stream, [])
        for at in range(len(work) if count is None else count):
            work[at]()
            work[at] = lambda: None

    def later(self, stream: Any, work: Callable[[], None]) -> tuple[int]:
        self.waiting.setdefault(int(stream), []).append(work)
        return (SUCCESS,)

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return SUCCESS, self.version

    def cuMemAlloc(self, size: int) -> tuple[Any, int]:
        if size > self.left:
            return OutOfMemory(2), 0
        block = ctypes.create_string_buffer(size)
        address = ctypes.addressof(block)
        self.left -= size
        self.blocks[address] = block
        return SUCCESS, address

    def cuMemFree(self, address: int) -> tuple[int]:
        self.left += len(self.blocks.pop(address))
        return (SUCCESS,)

    def cuMemcpyHtoD(self, to: int, source: int, size: int) -> tuple[int]:
        self.finish(int(driver.STREAM))
        ctypes.memmove(to, source, size)
        return (SUCCESS,)

    cuMemcpyDtoH = cuMemcpyHtoD

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: Any) -> tuple[int]:
        return self.later(stream, lambda: ctypes.memmove(to, source, size) and None)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        return SUCCESS, next(self._numbers)

    def cuEventRecord(self, event: int, stream: Any) -> tuple[int]:
        self.reached[event] = int(stream), len(self.waiting.setdefault(int(stream), []))
        return (SUCCESS,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:
        if event in self.reached:
            self.finish(*self.reached[event])
        return (SUCCESS,)

    def cuStreamCreate(self, flags: Any) -> tuple[int, int]:
        self.streams += 1
        return SUCCESS, next(self._numbers)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[int]:
        return self.later(stream, lambda: self.cuEventSynchronize(event) and None)

    def cuStreamSynchronize(self, stream: Any) -> tuple[int]:
        self.finish(int(stream))
        return (SUCCESS,)

    def cuModuleLoadData(self, code: int) -> tuple[Any, int]:
        return (OutOfMemory(2) if self.left < self.code_size else SUCCESS), code

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[int, bytes]:
        return SUCCESS, name

    def cuLaunchKernel(self, handle: Any, *rest: Any) -> tuple[Any]:
        *shape, shared, stream, single, address = rest
        if "cuLaunchKernel" in self.fails:
            return (Failure(201),)
        listed = (ctypes.c_void_p * 5).from_address(address)
        assert (listed[0], listed[2], listed[4], shared, single) == (1, 2, None, 0, 0)
        assert stream is driver.STREAM
        size = ctypes.c_size_t.from_address(listed[3]).value
        self.launched.append((handle, shape, ctypes.string_at(listed[1], size)))
        return (SUCCESS,)


@pytest.fixture
def host_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostDriver]:
    found = HostDriver()
    monkeypatch.setattr(driver, "bindings", found)
    monkeypatch.setattr(driver, "_pool", Pool(driver._new_block, driver._free_block))
    monkeypatch.setattr(driver._Memory.__del__, "__defaults__", (driver._pool,))
    monkeypatch.setattr(staging, "_own", SimpleNamespace())
    monkeypatch.setattr(staging, "_idle", [])
    monkeypatch.setattr(launch, "_launch", found.cuLaunchKernel)
    gpus = Gpus()
    monkeypatch.setattr(driver.cuda, "gpus", gpus)
    monkeypatch.setattr(driver.cuda, "select_device", gpus.select)
    monkeypatch.setattr(driver.cuda, "get_current_device", gpus.get)
    monkeypatch.setattr(driver.cuda, "pinned_array", np.empty)
    for cached in (launch._parameters, driver._device):
        cached.cache_clear()
    yield found
    for cached in (launch._parameters, driver._device):
        cached.cache_clear()


@pytest.mark.parametrize("often_beside", [0.0, 0.5, 1.0])
def test_what_is_sent_arrives(host_driver: HostDriver, often_beside: float) -> None:
    """The host array changes at once, pinned memory and that of the GPU are used again."""
    rng = np.random.default_rng(0)
    host = np.zeros(400_000, np.float32)
    sent = []
    for number in range(40):
        size = int(rng.integers(1, 5)) * 100_000
        host[:size] = number
        sent.append((number, to_device(host[:size], beside=rng.random() < often_beside)))
        host[:size] = -1
        if number % 3 == 2:  # Its memory is the next one's, and what was asked for may wait still.
            sent.pop()
    for number, array in sent:
        np.testing.assert_array_equal(array.to_host(), number)


def test_small_transfers_are_one_call_each(host_driver: HostDriver) -> None:
    for number in range(100):
        to_device(np.full(100, number))
    assert not host_driver.reached
    assert sum(map(len, host_driver.waiting.values())) == 100


def test_a_transfer_larger_than_a_page(host_driver: HostDriver) -> None:
    first, large = to_device(np.arange(10)), to_device(np.arange(300_000))
    largest = to_device(np.arange(3_000_000))  # Of which no copy is made before.
    np.testing.assert_array_equal(first.to_host(), np.arange(10))
    np.testing.assert_array_equal(large.to_host(), np.arange(300_000))
    np.testing.assert_array_equal(largest.to_host(), np.arange(3_000_000))


def test_each_thread_has_its_own_pages(
    host_driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_own", threading.local())

    def sent(number: int) -> DeviceArray:
        array: DeviceArray = to_device(np.full(1000, number), beside=True)
        return array

    with ThreadPoolExecutor(1) as thread:
        arrays = list(thread.map(sent, range(5)))
    for number, array in enumerate([*arrays, sent(5)]):
        np.testing.assert_array_equal(array.to_host(), number)


def test_a_thread_inherits_the_pages_of_one_that_has_ended(
    host_driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_own", threading.local())
    arrays = []
    for number in range(5):  # In each, what the one before has sent is under way.
        with ThreadPoolExecutor(1) as thread:
            some = [np.full(200_000, 10 * number + i, np.float32) for i in range(5)]
            arrays += list(thread.map(to_device, some))
    assert host_driver.streams == 1
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(array.to_host(), 10 * (number // 5) + number % 5)


def test_a_thread_works_on_the_gpu_that_was_current_at_first_use(
    host_driver: HostDriver, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_own", threading.local())
    driver.cuda.select_device(1)
    array = to_device(np.ones(3))
    for work in (
        lambda: to_device(np.ones(3), beside=True),
        lambda: to_device(np.ones(1 << 22)),  # More than is staged.
        array.to_host,
        lambda: kernel((1, 1, 1), 1),
    ):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(work).result()
            assert thread.submit(lambda: driver.cuda.gpus.current).result().id == 1


def test_memory_that_is_free_is_let_go_when_there_is_no_other(host_driver: HostDriver) -> None:
    host_driver.left = 10_000
    held = DeviceArray.empty(1000, np.int8)
    DeviceArray.empty(6000, np.int8)  # Free at once, and kept.
    assert host_driver.left < 4000
    other = DeviceArray.empty(8000, np.int8)
    assert len(host_driver.blocks) == 2
    with pytest.raises(DeviceMemoryError, match=r"for an array of shape \(9000,\) and int8, 9000"):
        DeviceArray.empty(9000, np.int8)
    assert held.address != other.address


@pytest.mark.parametrize(("stream", "waits"), [(None, False), (1, False), (2, False), (77, True)])
def test_only_another_stream_is_waited_for(
    stream: int | None, waits: bool, host_driver: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    interface = to_device(np.ones(3)).__cuda_array_interface__ | {"stream": stream}
    foreign = SimpleNamespace(
        __cuda_array_interface__=interface, shape=(3,), dtype=np.dtype(np.float64),
        is_c_contiguous=lambda: True,
    )  # fmt: skip
    waited = []

    def of_numba(array: Any, sync: bool = True) -> Any:
        waited.append(sync)
        return array

    monkeypatch.setattr(driver.cuda, "as_cuda_array", of_numba)
    assert to_device(foreign).address == interface["data"][0]
    assert waited == [waits]


class Numbers(NamedTuple):
    a: int
    b: float


@pytest.fixture
def kernel(host_driver: HostDriver, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(launch, "name_of", lambda *what: "name")
    monkeypatch.setattr(launch, "load", lambda name: ("entry", b"code"))
    return launch.kernel(32, 8, real=np.float32)(lambda *numbers: None)


def test_numbers_are_packed_as_a_kernel_takes_them(host_driver: HostDriver, kernel: Kernel) -> None:
    for factor in (1.5, 2, np.float64(2.5)):
        kernel((4, 2, 1), 7, Numbers(-1, factor), (True, (2.0, 1 << 40)))
    assert [shape for _, shape, _ in host_driver.launched] == [[4, 2, 1, 32, 8, 1]] * 3
    for (handle, _, packed), factor in zip(host_driver.launched, (1.5, 2, 2.5), strict=True):
        assert handle == b"entry"
        assert Struct("qqf?fq").unpack(packed) == (7, -1, factor, True, 2.0, 1 << 40)


def test_more_numbers_are_another_kernel(host_driver: HostDriver, kernel: Kernel) -> None:
    kernel((1, 1, 1), (1, 2))
    kernel((1, 1, 1), (1, 2, 3))
    assert [len(packed) for *_, packed in host_driver.launched] == [16, 24]


def test_machine_code_gets_the_memory_of_arrays(host_driver: HostDriver, kernel: Kernel) -> None:
    host_driver.left = host_driver.code_size = 10_000
    held = DeviceArray.empty(6000, np.int8)
    with pytest.raises(DeviceMemoryError, match="no memory left: cuModuleLoadData failed with"):
        kernel((1, 1, 1), 1)
    del held
    kernel((1, 1, 1), 1)
    assert len(host_driver.launched) == 1


def test_a_driver_that_is_too_old_is_named(host_driver: HostDriver) -> None:
    host_driver.version = 11_080
    with pytest.raises(DeviceError, match=r"driver is for CUDA 11, but cuda-bindings"):
        to_device(np.ones(3))


def test_libraries_that_are_missing_are_named(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*what: Any, **options: Any) -> Any:
        raise RuntimeError("Missing libdevice file.\n")

    monkeypatch.setattr(launch, "load", lambda name: None)
    monkeypatch.setattr(launch.dispatcher, "_Kernel", missing)
    with pytest.raises(DeviceError, match=r"compiled: Missing libdevice file\. pip install"):
        kernel((1, 1, 1), 1)


def test_a_driver_that_fails_is_named(host_driver: HostDriver, kernel: Kernel) -> None:
    host_driver.fails.add("cuLaunchKernel")
    with pytest.raises(DeviceError, match=r"^cuLaunchKernel .*INVALID_CONTEXT: arrays and"):
        kernel((1, 1, 1), 1)


def test_addresses_are_those_of_the_driver(host_driver: HostDriver) -> None:
    array = to_device(np.arange(6.0).reshape(2, 3))
    assert array.address in host_driver.blocks
    assert array.reshape(3, 2).address == array.address
    assert array.__cuda_array_interface__["data"] == (array.address, False)
    host = array.to_host()
    assert address_of(host) != array.address
    np.testing.assert_array_equal(host, np.arange(6.0).reshape(2, 3))
