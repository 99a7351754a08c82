"""Ctrl-C waits until the work can be put down."""

import signal
import threading

import pytest

from convert.interrupt import held_interrupt


def test_ctrl_c_is_held_until_the_end():
    reached = []

    def press_twice() -> None:
        with held_interrupt() as interrupted:
            assert not interrupted()
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            reached.append(interrupted())

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert reached == [True]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_nothing_was_pressed():
    with held_interrupt() as interrupted:
        assert not interrupted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_meaning_of_ctrl_c_is_kept():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        with held_interrupt():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [True]


def test_other_threads_may_convert_too():
    failures = []

    def work() -> None:
        try:
            with held_interrupt() as interrupted:
                assert not interrupted()
        except ValueError as error:  # signal handlers belong to the main thread
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures
