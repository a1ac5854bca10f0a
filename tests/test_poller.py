"""The poller closes what is its own, once."""

import os

from taskpool.wire.poller import Poller


def test_a_second_close_leaves_descriptors_of_others_alone() -> None:
    poller = Poller()
    before = set(os.listdir("/proc/self/fd"))
    poller.close()
    freed = [int(fd) for fd in before - set(os.listdir("/proc/self/fd"))]
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in freed]
    poller.close()
    for fd in taken:
        os.close(fd)  # raises if the second close had taken it


def test_wake_ends_the_wait() -> None:
    poller = Poller()
    poller.wake()
    poller.wait(30)
    poller.close()


def test_a_callback_removed_in_the_same_round_is_not_called() -> None:
    poller = Poller()
    first, second = os.eventfd(1), os.eventfd(1)
    called = []

    def calling(me: int, other: int) -> None:
        called.append(me)
        poller.remove(other)

    poller.add(first, lambda events: calling(first, second))
    poller.add(second, lambda events: calling(second, first))
    poller.wait(30)
    assert len(called) == 1
    for fd in (first, second):
        os.close(fd)
    poller.close()
