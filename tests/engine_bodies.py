"""Bodies that tests of engines run in workers, and what they have to say through files."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import time
from pathlib import Path

import taskpool.errors
from taskpool.worker.controller import current as controller


def double(x: int) -> int:
    return 2 * x


def fail(text: str) -> None:
    raise ValueError(text)


def pid() -> int:
    return os.getpid()


def say(text: str) -> None:
    print(text)


def say_and_wait(text: str, gate: str) -> None:
    print(text, flush=True)
    while not os.path.exists(gate):
        time.sleep(0.01)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def write(path: str, text: str = "") -> None:
    Path(path).write_text(text)


def write_and_wait(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(3600)


def spin_in_c() -> int:
    return sum(range(10**12))


def spin_in_python(path: str) -> None:
    Path(path).write_text("")
    while True:
        pass


def swallow_cancel(path: str) -> None:
    while True:
        try:
            Path(path).write_text("")
            while True:
                time.sleep(0.01)
        except BaseException:
            pass


def note_cancel(started: str, noted: str) -> None:
    try:
        Path(started).write_text("")
        time.sleep(3600)
    except taskpool.errors.Cancelled:
        Path(noted).write_text("cancelled")
        raise


def note_soft_timeout() -> str:
    try:
        time.sleep(3600)
    except taskpool.errors.SoftTimeout:
        return "soft"
    return "none"


def extend(seconds: float, nap_s: float) -> str:
    controller().extend_timeout(seconds)
    time.sleep(nap_s)
    return "extended"


def beat(times: int, pause_s: float) -> str:
    for done in range(times):
        controller().progress(done, times, "beating")
        time.sleep(pause_s)
    return "beaten"


def fall_silent() -> None:
    controller().progress(1, 2, "last words")
    time.sleep(3600)


def see_stopping(path: str) -> str:
    Path(path).write_text("")
    while not controller().stopping:
        time.sleep(0.002)
    return "seen"


def save_and_wait(data: int, path: str) -> None:
    controller().checkpoint(data)
    Path(path).write_text("")
    time.sleep(3600)


def big(size: int) -> bytes:
    return b"x" * size


def share_and_wait(path: str) -> None:
    """Make shared memory and never free it: multiprocessing starts a process that does so when this one is dead."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=4096)
    Path(path).write_text(memory.name)
    time.sleep(3600)


# ---- ways to die ----------------------------------------------------------------------------------------------------


def die_by_signal(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(3600)


def die_by_exit(code: int) -> None:
    print("last words", flush=True)
    os._exit(code)


def die_by_null() -> None:
    ctypes.string_at(0)


def die_by_abort() -> None:
    os.abort()


def die_by_recursion() -> None:
    """Overflow the C stack. Newer interpreters end most other ways of that by RecursionError."""
    faulthandler._stack_overflow()  # type: ignore[attr-defined]


def die_by_closing() -> None:
    os.closerange(3, 20000)


def stop_yourself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_all_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    time.sleep(3600)


# ---- what is left behind --------------------------------------------------------------------------------------------


def start_child() -> int:
    return subprocess.Popen(["sleep", "3600"]).pid


def start_child_and_wait(path: str) -> None:
    child = subprocess.Popen(["sleep", "3600"])
    Path(path).write_text(str(child.pid))
    time.sleep(3600)


def daemonize(path: str, clean_environment: bool = False) -> None:
    """Leave a daemon: forked twice, in a session of its own, with a child of its own; its pids come into the file."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            child = os.fork()
            if child == 0:
                time.sleep(3600)
                os._exit(0)
            part = Path(path + ".part")
            part.write_text(f"{os.getpid()} {child}")
            part.rename(path)
            if clean_environment:
                os.execve("/bin/sleep", ["sleep", "3600"], {})
            time.sleep(3600)
        os._exit(0)
    os.wait()
    while not os.path.exists(path):
        time.sleep(0.001)


def daemonize_and_wait(path: str, clean_environment: bool = False) -> None:
    daemonize(path, clean_environment)
    time.sleep(3600)


def scribble(page: str, done: str) -> None:
    """Do to the own status page what a stray write could: make the ring's head nonsense."""
    from taskpool.wire.page import HEAD

    with open(page, "r+b") as file:
        file.seek(8 * HEAD)
        file.write((2**40 + 1).to_bytes(8, "little"))
    Path(done).write_text("")
    time.sleep(3600)
