"""The directory of a run: recognised, claimed, or refused before anything takes time."""

import contextlib
import json
import os
import pathlib

import h5py

from mln_keras.command.checkpoints import best_weights, load_checkpoint
from mln_keras.command.versions import VERSION
from mln_keras.data import checks
from mln_keras.data.checks import ArgumentError
from mln_keras.data.loaders import YOURS


def identity(flags):
    """The flags that say what a run computes, a dict: not where it lies, how it is continued or on
    how many GPUs.

    Where the data lie says nothing either, but for data sets that have no other name.
    """
    others = ["output_dir", "resume", "check_files", "gpus"]
    if flags["dataset"] not in YOURS:
        others.append("data_dir")
    return {name: value for name, value in flags.items() if name not in others}


def find_run(directory, flags, resume):
    """Recognises the run that is in a directory, or sees that one can begin there.

    Nothing is made or changed, so that this can come before all that takes time.

    Args:
        directory: path.
        flags: dict of every flag's value.
        resume: whether to continue a run that is there.

    Returns:
        The finished run's result (dict) where the directory holds just this run, made by this
        version of the program, else None.

    Raises:
        ValueError: where the directory cannot be written, or holds another run or no run, or one
            of another version of this program.
    """
    result, held, version = _read_run(pathlib.Path(directory))
    if held is None:
        _check_writable(pathlib.Path(directory))
        check_holds_only(directory, _is_leftover)
        return None
    if version != VERSION:
        raise _refused(
            f"{directory} holds a run of version {version} of this program, and this "
            f"is version {VERSION}; name another directory"
        )
    differing = [
        f"--{name} was {held.get(name)!r}, now {flags[name]!r}"
        for name in identity(flags)
        if held.get(name) != flags[name]
    ]
    if differing:
        raise _refused(
            f"{directory} holds another run ({'; '.join(differing)}); name another "
            f"directory, or give that run's flags"
        )
    if result is None:
        if not resume:
            raise _refused(
                f"{directory} holds an unfinished run with these flags; add --resume "
                f"to continue it, or name another directory"
            )
        _check_writable(pathlib.Path(directory))
    return result


def _read_run(directory):
    """(result, flags, version) of the run in a directory; None for what it does not have."""
    path = directory / "result.json"
    try:
        if path.exists():
            result = json.loads(path.read_text())
            return result, dict(result["flags"]), result["versions"].get("mln_keras", "0.1")
        state, weights = load_checkpoint(directory)
        if state is None:
            return None, None, None
        for file in (weights, best_weights(directory, state["best_epoch"])):
            h5py.File(file).close()
        return None, dict(state["flags"]), state.get("version", "0.1")
    except PermissionError as error:
        raise _unreadable(directory, error) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = checks.one_line(f"{type(error).__name__}: {error}")
        raise _refused(
            f"{directory} holds no run of this program, or a damaged one ({reason}); "
            f"name another directory"
        ) from None


def _is_leftover(path):
    """Whether this may come from a run that was killed before its first checkpoint was whole."""
    if path.name == "checkpoint" and path.is_dir():
        return all(map(_is_leftover, path.iterdir()))
    return path.name.startswith(".writing-") or path == best_weights(path.parent.parent, 1)


def check_holds_only(directory, is_own):
    """Refuses, with a ValueError, a directory with an entry for which `is_own(path)` is False."""
    try:
        if not os.path.isdir(directory) or all(map(is_own, pathlib.Path(directory).iterdir())):
            return
    except OSError as error:
        raise _unreadable(directory, error) from None
    raise _refused(
        f"{directory} is not empty and holds no run of this program; name another directory"
    )


def _check_writable(directory):
    existing = next(p for p in (directory, *directory.absolute().parents) if os.path.lexists(p))
    if not os.path.exists(existing):
        target = os.readlink(existing)
        raise _refused(f"cannot make {directory}, {existing} is a link to {target}, not there")
    if not existing.is_dir():
        raise _refused(f"cannot write to {directory}, {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _refused(f"cannot write to {directory}, no permission in {existing}")


@contextlib.contextmanager
def claim_directory(directory):
    """Makes a run's directory and keeps other processes from training in it, while the context is.

    Where the system cannot lock a directory (Windows, NFS), nothing keeps them from it.

    Raises:
        ValueError: where it cannot be made, or another process has claimed it.
    """
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise _refused(f"cannot make {directory} ({error.strerror})") from None
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            descriptor = os.open(directory, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refused(f"another process is training in {directory}") from None
        except (ImportError, OSError):
            pass
        yield


def _unreadable(directory, error):
    return _refused(f"cannot read {error.filename or directory} ({error.strerror})")


def _refused(text):
    return ArgumentError("output_dir", text)
