"""Output that blocks, and recognizing a slow connection by it."""

import io
import threading
import time

import pytest

from lmconsole.tui.terminal.connection import SLOW_TICKS, SlowConnectionDetector
from lmconsole.tui.terminal.driver import BackpressureOutput


class BlockingFile(io.StringIO):
    """A file that accepts nothing until ``accept`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.accept = threading.Event()

    def write(self, text: str) -> int:
        """Block, then write."""
        self.accept.wait()
        return super().write(text)


class GoneFile(io.StringIO):
    """A terminal that has hung up."""

    def write(self, text: str) -> int:
        """Fail as a terminal does."""
        raise OSError(f"Input/output error after {text!r}")


def test_a_connection_is_slow_after_several_slow_ticks_in_a_row() -> None:
    detector = SlowConnectionDetector()
    assert [detector.record(0.3, 0.5) for _ in range(SLOW_TICKS)] == [False] * (SLOW_TICKS - 1) + [True]


def test_a_fast_tick_starts_the_count_again() -> None:
    detector = SlowConnectionDetector()
    ticks = [0.3] * (SLOW_TICKS - 1) + [0.1] + [0.3] * (SLOW_TICKS - 1)
    assert not any(detector.record(blocked_s, 0.5) for blocked_s in ticks)


@pytest.mark.parametrize(("blocked_s", "slow"), [(0.7, False), (0.9, True)])
def test_a_tick_is_slow_by_its_share_of_blocked_time(blocked_s: float, slow: bool) -> None:
    detector = SlowConnectionDetector()
    assert [detector.record(blocked_s, 2.0) for _ in range(SLOW_TICKS)][-1] is slow


def test_output_measures_a_blocked_write_while_it_lasts_and_afterwards() -> None:
    file = BlockingFile()
    output = BackpressureOutput(file)
    assert output.current_write_s == 0.0
    thread = threading.Thread(target=output.write, args=("text",))
    thread.start()
    deadline = time.monotonic() + 10.0
    while output.current_write_s < 0.05:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    file.accept.set()
    thread.join()
    assert output.current_write_s == 0.0
    assert output.pop_blocked_s() >= 0.05
    assert output.pop_blocked_s() == 0.0
    assert file.getvalue() == "text"


def test_output_to_a_terminal_that_is_gone_is_discarded() -> None:
    output = BackpressureOutput(GoneFile())
    assert output.write("text") == 0
    assert output.gone
    output.flush()
