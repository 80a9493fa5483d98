"""How far something is that takes long, and how long it will take still."""

import sys
import time

PATIENCE = 10  # seconds before the first word


def progress(batches, count, what, size=len):
    """Yields batches, and says how far that is, from when it has taken ten seconds.

    On a terminal one line counts on; elsewhere a line comes each time that a tenth is done. It is
    written to standard error.

    Args:
        batches: iterable.
        count: how many things are in all of them.
        what: these things, in words.
        size: function of a batch, how many are in it.
    """
    since, done, said = time.monotonic(), 0, None
    is_terminal = sys.stderr.isatty()
    for batch in batches:
        yield batch
        done += size(batch)
        seconds = time.monotonic() - since
        if seconds < PATIENCE:
            continue
        step = int(seconds) if is_terminal else 10 * done // count
        if step != said:
            left = _in_words(seconds * (count / done - 1))
            text = f"{what}: {done:,} of {count:,}, {left} left"
            print(f"\r{text:<70}" if is_terminal else text, end="" if is_terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
        said = step
    if said is not None and is_terminal:
        print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


def _in_words(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
