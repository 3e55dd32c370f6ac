"""The crew of threads: the same bits for any number of them, and no way to end up wedged.

Whatever could hang or end a process runs in one of its own, with a limit of time.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import numba
import numpy as np
import pytest
from kernel_checks import answer, check_many, copied
from numba import types

from numbadrop import kernels
from numbadrop.kernels import matmul, run_product
from numbadrop.kernels import threads as crew_of_threads
from numbadrop.kernels.atomics import atomic_add
from numbadrop.kernels.jit import DONE
from numbadrop.kernels.memory import store

SHAPES = [(1, 1, 1), (17, 47, 33), (3, 515, 40), (130, 70, 90)]


@pytest.fixture(autouse=True)
def threads():
    """Give the rest of the session the number of threads that it had."""
    before = kernels.get_num_threads()
    yield
    kernels.set_num_threads(before)


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    digests = set()
    for every_size in (False, True):  # products of one element in parts too
        if every_size:
            monkeypatch.setattr(matmul, "run_usual_product", lambda *arguments, **named: None)
            monkeypatch.setattr(run_product, "_SERIAL_BELOW", 0)
        for threads in (1, 2, 3, 7):
            kernels.set_num_threads(threads)
            assert kernels.get_num_threads() == threads
            digests.add(check_many(SHAPES, layouts=("C", "spread"), guard=copied))
    assert len(digests) == 1


@pytest.mark.parametrize("count", [0, -1, 4096, 10**9])
def test_a_number_of_threads_out_of_range(count):
    kernels.set_num_threads(2)
    with pytest.raises(ValueError, match=rf"^threads must be in \[1, \d+\], got {count}"):
        kernels.set_num_threads(count)
    assert kernels.get_num_threads() == 2


@pytest.mark.parametrize("count", [2.5, "2", None])
def test_a_number_of_threads_that_is_none(count):
    kernels.set_num_threads(2)
    with pytest.raises(TypeError, match=r"^threads must be an integer, got"):
        kernels.set_num_threads(count)
    assert kernels.get_num_threads() == 2
    np.testing.assert_array_equal(kernels.matmul_at(np.ones((70, 80)), np.ones((70, 90))), 70)


# What the programs below compute: large enough for several threads, exact in any order.
START = """
import multiprocessing, os, random, signal, sys, threading, time
import numpy as np
from numbadrop import kernels
from numbadrop.optim.rules import NAGRule

rng = np.random.default_rng(0)
x, w = (rng.integers(-9, 10, shape).astype(np.float32) for shape in ((90, 160), (320, 300)))
rows = np.arange(0, 320, 2)
expected = x @ w[rows]
rule = NAGRule(0.5, 0.25, 1.5)


def correct():
    value, slots, grad = np.zeros((200, 300)), np.ones((1, 200, 300)), np.ones((200, 300))
    kernels.update_block(rule, value, slots, grad)
    product = kernels.gathered_matmul(x, w, rows)
    return np.array_equal(product, expected) and (value == -0.125).all() and (slots == 0.25).all()


def run():
    assert correct()
"""


def test_the_default_is_numbas():
    for count in ("1", "3"):
        program = START + "run(); print(kernels.get_num_threads())"
        assert answer("-c", program, env={"NUMBA_NUM_THREADS": count}) == count


def test_callers_at_once():
    """Also on their first call, and while another thread changes the number of threads."""
    program = """
barrier = threading.Barrier(6)
wrong = []
done = threading.Event()

def work():
    barrier.wait()
    try:
        for _ in range(150):
            if not correct():
                wrong.append("a result")
    except BaseException as error:
        wrong.append(repr(error))

def change():
    barrier.wait()
    while not done.is_set():
        kernels.set_num_threads(random.randint(1, 6))
        time.sleep(0.001)

workers = [threading.Thread(target=work) for _ in range(5)]
changer = threading.Thread(target=change)
for thread in (*workers, changer):
    thread.start()
for thread in workers:
    thread.join()
done.set()
changer.join()
print(wrong)
"""
    assert answer("-c", START + program, env={"NUMBA_NUM_THREADS": "4"}, timeout=60) == "[]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_after_fork():
    """While the crew works for another thread, and in the children of a child."""
    program = """
def child(generations):
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
    else:
        run()
        if generations:
            child(generations - 1)
        kernels.set_num_threads(3)
        run()
        sys.exit(0)  # not os._exit: what is registered to run at the end must work here

kernels.set_num_threads(2)
run()
stop = threading.Event()

def busy():
    while not stop.is_set():
        run()

other = threading.Thread(target=busy)
other.start()
try:
    for _ in range(4):
        child(1)
        run()
finally:
    stop.set()
other.join()
print("joined")
"""
    arguments = ["-W", "ignore::DeprecationWarning"]  # Python 3.12 on fork beside threads
    assert answer(*arguments, "-c", START + program, timeout=60) == "joined"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    program = """
def work(number):
    return correct()

if __name__ == "__main__":
    kernels.set_num_threads(2)
    run()
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(all(pool.map(work, range(6))))
    run()
"""
    if method != "spawn" and sys.platform in ("win32", "darwin"):
        pytest.skip(f"{method} is not for this system")
    path = tmp_path / "program.py"
    path.write_text(START + program, "utf-8")
    assert answer("-W", "ignore::DeprecationWarning", str(path), method, timeout=60) == "True"


INTERRUPT = """
class Stop(BaseException):
    pass

def stop(number, frame):
    raise Stop

signal.signal(signal.SIGALRM, stop)
kernels.set_num_threads(3)
run()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signal.setitimer")
class TestInterrupts:
    def test_nothing_is_written_after_an_exception(self):
        """Ctrl-C in the middle of a product: when it raises, no thread may still be at work."""
        program = """
x = np.ones((900, 1200), np.float32)
w = np.ones((1200, 1500), np.float32)
start = time.perf_counter()
kernels.gathered_matmul(x, w)
takes = time.perf_counter() - start
late = raised = 0
for fraction in np.linspace(0.05, 0.8, 16):
    out = np.zeros((900, 1500), np.float32)
    signal.setitimer(signal.ITIMER_REAL, takes * fraction)
    try:
        kernels.gathered_matmul(x, w, out=out)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        raised += 1
        then = out.copy()
        time.sleep(takes)
        late += not np.array_equal(then, out)
print(late, raised > 0)
"""
        assert answer("-c", START + INTERRUPT + program, timeout=60) == "0 True"

    def test_thousands_at_random_moments(self):
        """No result is wrong afterwards, no crew left in use, and nobody has to wait forever."""
        program = """
from numbadrop.kernels import threads as crew_of_threads
interrupts = 0
end = time.monotonic() + 2
while time.monotonic() < end:
    try:
        # Once more after a while: Python swallows what is raised where objects are freed.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 4e-4), 0.5)
        while True:
            run()
    except Stop:
        signal.setitimer(signal.ITIMER_REAL, 0)
        interrupts += 1
signal.setitimer(signal.ITIMER_REAL, 0)
assert interrupts > 100
other = threading.Thread(target=run)
other.start()
other.join(10)
assert not other.is_alive()
time.sleep(0.1)
run()
crew = crew_of_threads._crew
assert crew._state.value == crew_of_threads._FREE
if hasattr(os, "sched_getaffinity"):
    for thread in crew._threads:
        assert os.sched_getaffinity(thread.native_id) == os.sched_getaffinity(0)
kernels.set_num_threads(2)
run()
print("end")
"""
        assert answer("-c", START + INTERRUPT + program, timeout=30) == "end"


def test_the_end_of_a_process_while_a_daemon_thread_computes():
    program = """
def forever():
    while True:
        run()

kernels.set_num_threads(3)
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.1)
print("end")
"""
    for _ in range(3):
        assert answer("-c", START + program, timeout=20) == "end"


def note_part(notes, part, parts):
    """Write down which parts are done, in turn; the first word counts them."""
    place = atomic_add(notes, 1)
    store(notes + 8 + 8 * place, part)
    return DONE


@pytest.fixture(scope="module")
def noting():
    """Return `note_part` compiled."""
    i64 = types.int64
    return numba.cfunc(i64(i64, i64, i64))(note_part)


@pytest.mark.parametrize("own", [0, 1, 2])
def test_a_thread_takes_its_own_part_first_and_each_part_once(own, noting):
    """What a part needs lies in the cache of the core that did the same part before."""
    parts, patience = 3, 5
    shared = np.zeros(crew_of_threads._TAKEN // 8 + parts * crew_of_threads._APART // 8, np.int64)
    at = shared.ctypes.data
    native = crew_of_threads._native()
    native.serve(at, own, parts, patience)  # There is no task yet.
    for number in (1, 2):
        notes = np.zeros(1 + 3 * parts, np.int64)  # room for parts done too often
        shared[crew_of_threads._KERNEL // 8] = noting.address
        shared[crew_of_threads._TASK // 8] = notes.ctypes.data
        shared[crew_of_threads._NUMBER // 8] = number
        native.serve(at, own, parts, patience)
        native.serve(at, 0, parts, patience)
        assert notes[0] == shared[crew_of_threads._DONE // 8] - (number - 1) * parts == parts
        assert list(notes[1 : 1 + parts]) == [own, (own + 1) % parts, (own + 2) % parts]
    shared[crew_of_threads._NUMBER // 8] = 1  # as who looked, and was sent away, before task 2
    native.serve(at, own, parts, patience)
    assert notes[0] == parts
    assert shared[crew_of_threads._ASLEEP // 8] == 0
    assert shared[crew_of_threads._FAILED // 8] == 0


def test_no_part_is_done_twice_or_not_at_all(noting):
    kernels.set_num_threads(4)
    for _ in range(3000):
        notes = np.zeros(17, np.int64)  # room for each part by each thread
        crew_of_threads.run(noting.address, notes.ctypes.data, parallel=True)
        assert sorted(notes[1:5]) == [0, 1, 2, 3]
        assert notes[0] == 4


def test_who_still_has_a_crew_that_was_ended_works_alone(noting):
    kernels.set_num_threads(3)
    kernels.matmul_at(np.ones((70, 80)), np.ones((70, 90)))
    crew = crew_of_threads._crew
    kernels.set_num_threads(2)
    for _ in range(2):
        notes = np.zeros(4, np.int64)
        assert crew.run(noting.address, notes.ctypes.data) == 0
        assert list(notes) == [1, 0, 0, 0]


def test_a_change_of_the_number_that_is_interrupted_has_changed_it(monkeypatch, noting):
    kernels.set_num_threads(2)
    kernels.matmul_at(np.ones((70, 80)), np.ones((70, 90)))
    stop = crew_of_threads._Crew.stop

    def interrupted(self):
        stop(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(crew_of_threads._Crew, "stop", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kernels.set_num_threads(3)
    assert kernels.get_num_threads() == 3
    notes = np.zeros(4, np.int64)
    crew_of_threads.run(noting.address, notes.ctypes.data, parallel=True)
    assert sorted(notes[1:]) == [0, 1, 2]


def fail_part(notes, part, parts):
    """Count the part; of those that there can be, one has enough memory."""
    atomic_add(notes, 1)
    return DONE if part == 1 else 0


@pytest.mark.parametrize("threads", [1, 4])
def test_a_part_that_fails_is_reported_when_all_are_done(threads, noting):
    i64 = types.int64
    failing = numba.cfunc(i64(i64, i64, i64))(fail_part)
    kernels.set_num_threads(threads)
    for _ in range(20):
        notes = np.zeros(17, np.int64)
        with pytest.raises(MemoryError, match="no memory for what a kernel needs"):
            crew_of_threads.run(failing.address, notes.ctypes.data, parallel=True)
        assert notes[0] == threads
    notes = np.zeros(17, np.int64)
    crew_of_threads.run(noting.address, notes.ctypes.data, parallel=True)
    assert notes[0] == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on memory")
def test_no_memory_for_a_kernel_is_an_error():
    program = """
import resource
images, taps = np.ones((4, 8, 8, 64), np.float32), np.ones((3, 3, 64, 64), np.float32)
y = kernels.gathered_conv2d(images, taps, padding=400, dilation=400)
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 24), -1))
sys.unraisablehook = lambda error: None
try:
    kernels.gathered_conv2d(images, taps, padding=400, dilation=400)
except MemoryError as error:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    assert "kernel" in str(error), error
    run()
    print(np.array_equal(kernels.gathered_conv2d(images, taps, padding=400, dilation=400), y))
"""
    assert answer("-c", START + program, timeout=60) == "True"


def test_fewer_threads_than_asked_for_do_all_the_work():
    program = """
start = threading.Thread.start

def refuse(thread):
    if thread.name == "numbadrop-2":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refuse
kernels.set_num_threads(4)
run()
print(sum(thread.name.startswith("numbadrop") for thread in threading.enumerate()))
"""
    assert answer("-c", START + program) == "1"


def test_a_crew_whose_making_is_interrupted_leaves_no_thread(monkeypatch):
    before = threading.active_count()
    kernels.set_num_threads(4)
    start = threading.Thread.start

    def interrupted(thread):
        if thread.name == "numbadrop-2":
            raise KeyboardInterrupt
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kernels.matmul_at(np.ones((70, 80)), np.ones((70, 90)))
    assert threading.active_count() <= before
    np.testing.assert_array_equal(kernels.matmul_at(np.ones((70, 80)), np.ones((70, 90))), 70)


def test_a_kernel_while_the_crew_is_made():
    """As in the handler of a signal, or where the last holder of an array lets go of it."""
    program = """
from numbadrop.kernels import threads

class Crew(threads._Crew):
    def __init__(self, parts):
        run()
        super().__init__(parts)

threads._Crew = Crew
kernels.set_num_threads(2)
run()
print("end")
"""
    assert answer("-c", START + program) == "end"


def test_helpers_are_rung_for_after_an_exception(monkeypatch):
    kernels.set_num_threads(3)
    x, g = np.ones((70, 80)), np.ones((70, 90))
    kernels.matmul_at(x, g)
    crew = sleeping(2)

    def interrupted(self, times):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(crew_of_threads._Crew, "_ring", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kernels.matmul_at(x, g)
    calls = []
    ring = crew_of_threads._Crew._ring
    monkeypatch.setattr(
        crew_of_threads._Crew, "_ring", lambda self, times: (calls.append(times), ring(self, times))
    )
    kernels.matmul_at(x, g)
    assert calls[0] == 2
    assert sleeping(2) is crew


def test_idle_threads_sleep():
    program = """
kernels.set_num_threads(4)
run()
time.sleep(0.1)
start = time.process_time()
time.sleep(0.5)
print(time.process_time() - start < 0.05)
"""
    assert answer("-c", START + program) == "True"


linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")


def sleeping(helpers):
    """Return the crew once all helpers sleep."""
    crew = crew_of_threads._crew
    end = time.monotonic() + 30
    at_rest = 0
    while at_rest < 10:  # One that was rung for may have taken notice, and not yet left.
        assert time.monotonic() < end
        time.sleep(0.001)
        asleep = crew._asleep.value == len(crew._cpus) == helpers
        at_rest = at_rest + 1 if asleep and crew._bell.empty() else 0
    return crew


@linux
@pytest.mark.parametrize("helpers", [1, 3])
@pytest.mark.parametrize("allowed", [True, False])
def test_no_helper_wakes_up_where_the_caller_works(helpers, allowed, monkeypatch):
    everywhere = os.sched_getaffinity(0)
    here = min(everywhere)
    assert crew_of_threads._current_cpu() in everywhere
    # As if caller and helpers were on one CPU.
    monkeypatch.setattr(crew_of_threads, "_current_cpu", lambda: here)
    kernels.set_num_threads(helpers + 1)
    x, g = np.ones((70, 80)), np.ones((70, 90))
    kernels.matmul_at(x, g)
    crew = sleeping(helpers)
    ids = list(crew._cpus)
    calls = []

    def change(thread, cpus):
        calls.append((thread, cpus, crew._bell.empty() and list(crew._cpus) == ids))
        if not allowed:
            raise PermissionError
        set_affinity(thread, cpus)

    set_affinity = os.sched_setaffinity
    monkeypatch.setattr(os, "sched_setaffinity", change)
    np.testing.assert_array_equal(kernels.matmul_at(x, g), 70)
    # All are kept off before the first is woken, and none afterwards.
    assert [helper for helper, *_ in calls] == 2 * ids
    assert calls[:helpers] == [(helper, everywhere - {here}, True) for helper in ids]
    assert all(cpus == everywhere for _, cpus, _ in calls[helpers:])
    sleeping(helpers)
    assert all(os.sched_getaffinity(helper) == everywhere for helper in ids)


@linux
@pytest.mark.parametrize("beside", [True, False])
def test_what_a_helper_may_use_is_not_forgotten(beside, monkeypatch):
    """By a caller who rings beside another one, or after one whom an exception sent away."""
    everywhere = os.sched_getaffinity(0)
    monkeypatch.setattr(crew_of_threads, "_current_cpu", lambda: min(everywhere))
    kernels.set_num_threads(2)
    x, g = np.ones((70, 80)), np.ones((70, 90))
    kernels.matmul_at(x, g)
    crew = sleeping(1)
    (helper,) = crew._cpus
    calls = []
    set_affinity = os.sched_setaffinity

    def change(thread, cpus):
        calls.append(cpus)
        if len(calls) == 1 and beside:
            set_affinity(thread, {max(everywhere)})
            other = threading.Thread(target=kernels.matmul_at, args=(x, g))
            other.start()
            other.join()
        elif len(calls) == 2 and not beside:
            raise KeyboardInterrupt
        else:
            set_affinity(thread, cpus)

    monkeypatch.setattr(os, "sched_setaffinity", change)
    if beside:
        kernels.matmul_at(x, g)
        assert len(calls) == 2
    else:
        with pytest.raises(KeyboardInterrupt):
            kernels.matmul_at(x, g)
        sleeping(1)
        kernels.matmul_at(x, g)
        assert calls[2] == everywhere
    sleeping(1)
    assert os.sched_getaffinity(helper) == everywhere


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="on one CPU, or where threads cannot be bound, there are none to keep",
)
def test_a_helper_keeps_the_cpus_that_it_was_given(monkeypatch):
    here, *others = sorted(os.sched_getaffinity(0))
    monkeypatch.setattr(crew_of_threads, "_current_cpu", lambda: here)
    kernels.set_num_threads(2)
    x, g = np.ones((70, 80)), np.ones((70, 90))
    kernels.matmul_at(x, g)
    (helper,) = sleeping(1)._cpus
    for cpus in ({here}, {others[0]}):
        os.sched_setaffinity(helper, cpus)
        np.testing.assert_array_equal(kernels.matmul_at(x, g), 70)
        sleeping(1)
        assert os.sched_getaffinity(helper) == cpus
