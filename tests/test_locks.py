"""Processes that share the work of one directory (threads here: the locks are the same)."""

import functools
import time
from concurrent import futures

import filelock
import pytest

from regularized_lopt.study import cache as cache_lib
from regularized_lopt.study import locks


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch):
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)


def test_work_that_another_is_at_is_left_for_last(tmp_path):
    order = []

    def do(name):
        order.append(name)
        return name.upper()

    other = filelock.FileLock(tmp_path / "a.lock")
    other.acquire()
    with futures.ThreadPoolExecutor() as pool:
        work = {name: functools.partial(do, name) for name in "abc"}
        shared = pool.submit(locks.share, work, tmp_path)
        while order != ["b", "c"]:
            assert not shared.done(), shared.result()
            time.sleep(0.01)
        time.sleep(0.1)
        assert order == ["b", "c"]
        other.release()
        assert shared.result() == {"a": "A", "b": "B", "c": "C"}
    assert order == ["b", "c", "a"]


def test_two_workers_halve_the_work(tmp_path):
    done = {}

    def do(worker, name):
        if name not in done:
            time.sleep(0.05)
            done[name] = worker
        return done[name]

    def work_as(worker):
        work = {name: functools.partial(do, worker, name) for name in "abcdef"}
        return locks.share(work, tmp_path)

    with futures.ThreadPoolExecutor() as pool:
        first, second = pool.map(work_as, ("first", "second"))
    assert first == second == dict(sorted(done.items()))
    assert set(done.values()) == {"first", "second"}


def test_a_failure_lets_go_of_its_lock(tmp_path):
    with pytest.raises(ZeroDivisionError):
        locks.share({"a": lambda: 1 / 0}, tmp_path)
    assert locks.share({"a": lambda: 1}, tmp_path) == {"a": 1}


def test_numbers_of_several_writers_all_count(tmp_path):
    def write(worker):
        numbers = cache_lib.Numbers(tmp_path / "numbers.json")
        for turn in range(20):
            numbers.add("all", 1.0)
            numbers[f"{worker} {turn}"] = turn

    with futures.ThreadPoolExecutor() as pool:
        list(pool.map(write, range(4)))
    found = cache_lib.read_json(tmp_path / "numbers.json")
    assert found["all"] == 80
    assert len(found) == 81
