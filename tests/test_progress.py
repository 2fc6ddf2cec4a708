import io
import re
import sys

import pytest

from regularized_lopt import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def run(clock, stream, monkeypatch, steps=300, seconds=1.0, show=True):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(steps, "a run", show) as bar:
        for _ in range(steps):
            clock[0] += seconds
            bar.set_postfix(loss="0.5", refresh=False)
            bar.update(1)
    return stream.getvalue()


def test_a_file_gets_a_line_a_minute_with_loss_and_time_left(clock, monkeypatch):
    text = run(clock, io.StringIO(), monkeypatch)
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0].startswith("a run: 0/300 ")
    assert lines[-1] == "a run: 300/300 [05:00<00:00, loss=0.5]"
    assert lines[1] == "a run: 60/300 [01:00<04:00, loss=0.5]"
    assert len(lines) == 6
    # Another begins on a line of its own.
    assert re.match(r"a run: 0/3 .*\na run: 3/3 .*\n$", run(clock, io.StringIO(), monkeypatch, 3))


def test_the_time_left_leaves_out_what_the_first_step_compiles(clock, monkeypatch):
    """Nothing is foretold by that step; the time that went by has it."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar(100, "a run", True) as bar:
        clock[0] += 90
        bar.update(1)
        clock[0] += 59
        bar.update(59)
        clock[0] += 1
        bar.update(1)
    lines = stream.getvalue().splitlines()
    assert [line.split("[")[1] for line in lines[1:]] == ["01:30<?]", "02:30<00:39]"]


def test_a_part_says_the_mean_loss_in_four_digits(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shared = progress.Shared(progress.bar(2, "runs", True))
    parts = [shared.part(), shared.part()]
    for part, loss in zip(parts, (1e-5, 3e-5), strict=True):
        part.say(loss)
    assert shared.bar.postfix == "loss=2e-05"


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    assert "\r" in run(clock, Terminal(), monkeypatch)


def test_nobody_looks(clock, monkeypatch):
    assert not run(clock, io.StringIO(), monkeypatch, show=False)


def test_what_is_said_beside_it_has_a_line_of_its_own(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.bar(3, "a run", True):
        progress.say("back to outer step 3")
    assert capsys.readouterr().out == "back to outer step 3\n"
