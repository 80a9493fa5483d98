"""What the program says: on standard output, and in one line on standard error."""

import contextlib
import os
import sys


class StdoutError(Exception):
    """Standard output cannot be written; the text is the system's reason."""


def say(text):
    """Prints text. Characters that standard output's encoding lacks come as escapes.

    Raises:
        BrokenPipeError: where nobody reads any more.
        StdoutError: where it cannot be written for another reason.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        discard_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise StdoutError(error.strerror) from None


def complain(text):
    print(f"mln_keras.py: {text}", file=sys.stderr)


def discard_stdout():
    """Sends what Python still holds for standard output nowhere, or it would fail at the end."""
    with contextlib.suppress(OSError, ValueError):  # where it is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
