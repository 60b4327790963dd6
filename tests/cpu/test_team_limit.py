"""How teams become smaller beside other programs, by a clock of the test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.native import compiled

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
US, MS, S = 10**3, 10**6, 10**9
CALL = 200 * US  # of the caller's own work


class Machine:
    """Calls one after another; `late` tells how long after the caller the last member is done."""

    def __init__(self, limit: subprocess.Popen[str], wanted: int) -> None:
        self.limit, self.wanted, self.now = limit, wanted, S

    def tell(self, *what: object) -> None:
        assert self.limit.stdin
        print(*what, file=self.limit.stdin, flush=True)

    def call(self, late: int = 0, worked: int = CALL) -> int:
        assert self.limit.stdout
        self.tell("members", self.wanted, self.now)
        members = int(self.limit.stdout.readline())
        # The work is divided among the members; who is alone waits for nobody.
        share = worked * self.wanted // members
        elapsed = share + (late if members > 1 else 0)
        self.now += elapsed
        if members > 1:
            self.tell("record", members, elapsed, share, self.now)
        return members

    def until(self, members: int, late: int = 0, most: int = 10 * S) -> int:
        """Calls until one has so many members; the nanoseconds that took."""
        begun = self.now
        while self.call(late) != members:
            assert self.now - begun < most
        return self.now - begun


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(HERE / "team_limit.cpp", tmp_path_factory.mktemp("native"), f"-I{CSRC}")


@pytest.fixture
def machine(program: Path) -> Iterator[Callable[[int], Machine]]:
    started = []

    def make(wanted: int) -> Machine:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([program], stdin=pipe, stdout=pipe, text=True))
        return Machine(started[-1], wanted)

    yield make
    for one in started:
        one.communicate()


@pytest.mark.parametrize("wanted", [2, 3, 8])
def test_an_idle_machine_keeps_the_whole_team(
    machine: Callable[[int], Machine], wanted: int
) -> None:
    idle = machine(wanted)
    assert all(idle.call(late=CALL // 2) == wanted for _ in range(2000))


def test_hiccups_of_an_idle_machine_are_forgiven(machine: Callable[[int], Machine]) -> None:
    idle = machine(2)
    assert all(idle.call(late=3 * MS if i % 50 == 0 else 0) == 2 for i in range(2000))


def test_a_caller_that_lost_its_core_blames_nobody(machine: Callable[[int], Machine]) -> None:
    preempted = machine(2)
    assert all(preempted.call(worked=9 * MS) == 2 for _ in range(100))


def test_small_delays_in_every_call_add_up(machine: Callable[[int], Machine]) -> None:
    slow = machine(2)
    more = 20 * US  # than alone
    assert slow.until(1, late=CALL + more) < 5 * MS // more * (2 * CALL + more)


@pytest.mark.parametrize("late", [6 * MS, 500 * MS])  # as when a virtual machine stood still
def test_a_long_wait_halves_the_team_for_a_moment(
    machine: Callable[[int], Machine], late: int
) -> None:
    free = machine(2)
    free.call(late)
    assert 6 * MS < free.until(2) < 10 * MS
    assert all(free.call() == 2 for _ in range(2000))


def test_beside_a_busy_program_trials_become_rare(machine: Callable[[int], Machine]) -> None:
    busy = machine(2)
    calls = [busy.call(late=6 * MS) for _ in range(10_000)]
    trials = calls.count(2)
    assert 1 < trials < 0.002 * len(calls)
    # … but not so rare that a free machine would stay half used.
    assert busy.until(2) <= S + 2 * CALL
    assert busy.until(1, late=6 * MS) < 10 * MS  # and is still known as busy


def test_a_delay_long_after_the_last_is_the_first_again(machine: Callable[[int], Machine]) -> None:
    later = machine(2)
    for _ in range(6000):
        later.call(late=6 * MS)
    later.until(2)
    for _ in range(500):
        later.call(worked=20 * MS)
    later.call(late=6 * MS)
    assert later.until(2) < 10 * MS


def test_teams_are_halved_and_doubled(machine: Callable[[int], Machine]) -> None:
    large = machine(8)
    sizes = [large.call(late=40 * MS) for _ in range(4)]
    assert sizes == [8, 4, 2, 1]
    large.until(2)
    large.until(4)
    large.until(8)
    assert all(large.call() == 8 for _ in range(100))


def test_a_small_call_may_have_what_the_limit_leaves(machine: Callable[[int], Machine]) -> None:
    large = machine(8)
    large.call(late=40 * MS)
    large.wanted = 3
    assert large.call() == 3
    large.wanted = 8
    assert large.call() == 4
