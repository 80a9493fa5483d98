"""How far something is that takes long, and how long it will take still."""

import sys
import time

PATIENCE = 10  # seconds before the first word


class Progress:
    """Says on standard error how far something is, from when it has taken ten seconds.

    On a terminal one line counts on; elsewhere a line comes each time that a tenth is done.

    Args:
        count: how many things there are to do.
        what: these things, in words.
    """

    def __init__(self, count, what):
        self.count, self.what = count, what
        self.done, self._said, self._since = 0, None, time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    def add(self, number):
        """Says that so many more are done, a positive number."""
        self.done += number
        seconds = time.monotonic() - self._since
        step = int(seconds) if self._is_terminal else 10 * self.done // self.count
        if seconds >= PATIENCE and step != self._said:
            left = _in_words(seconds * (self.count / self.done - 1))
            text = f"{self.what}: {self.done:,} of {self.count:,}, {left} left"
            self._write(f"\r{text:<70}" if self._is_terminal else f"{text}\n")
            self._said = step

    def end(self):
        """Takes the line away again."""
        if self._is_terminal and self._said is not None:
            self._write(f"\r{'':<70}\r")

    @staticmethod
    def _write(text):
        print(text, end="", file=sys.stderr, flush=True)


def progress(batches, count, what, size=len):
    """Yields batches, and says how far that is.

    Args:
        batches: iterable.
        count, what: as `Progress`; count is of things in all batches.
        size: function of a batch, how many are in it.
    """
    bar = Progress(count, what)
    for batch in batches:
        yield batch
        if number := size(batch):
            bar.add(number)
    bar.end()


def _in_words(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
