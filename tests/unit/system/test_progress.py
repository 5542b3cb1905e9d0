"""Progress: whole lines now and then where nobody watches, a bar on a terminal."""

import io

import pytest

from system.csv_tables import counted
from system.progress import Progress, duration


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_batch_log_gets_a_whole_line_a_minute_and_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = io.StringIO(), Clock()
    monkeypatch.setattr("sys.stderr", file)
    with Progress(400, "images", initial=40, name="training", clock=clock) as progress:
        for second in range(1, 121):
            clock.now = float(second)
            progress.update(2, f"loss {second}")
    assert file.getvalue() == (
        "training    40 %, 160 of 400 images, 0:01:00 so far, 0:02:00 left; loss 60\n"
        "training    70 %, 280 of 400 images, 0:02:00 so far, 0:01:00 left; loss 120\n"
    )


def test_bytes_are_shown_as_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    progress = Progress(4_000_000_000, "B", name="tissue", clock=Clock())
    assert progress.line() == "tissue      0 %, 0.00 of 4.00 GB, 0:00:00 so far"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Terminal()
    monkeypatch.setattr("sys.stderr", file)
    with Progress(4, "windows", name="predicting") as progress:
        progress.update(4, "slide 1 of 1")
    assert "\rpredicting" in file.getvalue()
    assert "4/4" in file.getvalue()
    assert "slide 1 of 1" in file.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_without_a_reader_the_work_goes_on(monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(text)

    clock = Clock()
    for file in (Gone(), None):
        monkeypatch.setattr("sys.stderr", file)
        with Progress(4, "windows", shown=shown, clock=clock) as progress:
            clock.now += 100.0
            progress.update(1)


def test_durations_and_numbers_of_things() -> None:
    assert duration(3723.4) == "1:02:03"
    assert [counted(1, "slide"), counted(0, "slide"), counted(2, "patch"), counted(1, "patch")] == [
        "1 slide", "0 slides", "2 patches", "1 patch",
    ]  # fmt: skip
