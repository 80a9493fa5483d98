"""The directory of a run: one that is another's, not empty or locked is refused."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from runs import FILES, RUN, SHORT, main, read_result

from mln_keras.command import output_dir, run, versions
from mln_keras.command.files import remove
from mln_keras.data import teacher


@pytest.fixture(params=["finished", "unfinished"])
def held(request, finished_run, tmp_path):
    """A directory with the run of `runs.RUN`, finished or not."""
    directory = tmp_path / "held"
    shutil.copytree(finished_run.directory, directory)
    if request.param == "unfinished":
        for name in FILES - {"checkpoint", "history.csv"}:
            remove(directory / name)
    return directory


def assert_begins(line, directory):
    assert line.startswith(f"mln_keras.py: --output_dir: {directory} ")
    assert line.count("--output_dir") == 1


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize(
    "change",
    [["--seed", "1"], ["--noise_ratio", "0.2"], ["--epochs", "7"], ["--learning_rate", "0.02"],
     ["--method", "mslg"], ["--unlabeled_size", "199"], ["--mixed_precision"]],
)  # fmt: skip
def test_another_runs_directory_is_refused(refused, held, change, resume):
    line = refused(*RUN, *change, *resume, output_dir=held)
    assert_begins(line, held)
    value = change[1] if len(change) > 1 else "True"
    assert re.search(rf"holds another run \({change[0]} was \S+, now '?{value}'?\); name", line)


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
def test_an_unfinished_run_without_resume_is_refused(refused, held):
    line = refused(*RUN, output_dir=held)
    assert_begins(line, held)
    assert "holds an unfinished run with these flags; add --resume to continue it" in line


@pytest.mark.parametrize("version", ["0.0", None])
def test_a_run_of_another_version_is_refused(refused, held, version):
    state, result = next(held.glob("checkpoint/*/state.json")), held / "result.json"
    for path, name in ((state, "version"), (result, "mln_keras")):
        if path.exists():
            content = json.loads(path.read_text())
            del (where := content.get("versions", content))[name]
            where |= {name: version} if version else {}
            path.write_text(json.dumps(content))
    line = refused(*RUN, "--resume", output_dir=held)
    assert_begins(line, held)
    assert f"holds a run of version {version or '0.1'} of this program" in line
    assert f"this is version {versions.VERSION};" in line


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
@pytest.mark.parametrize("damage", [os.remove, lambda path: os.truncate(path, 1000)])
def test_a_run_without_its_best_weights_is_refused(refused, held, damage):
    damage(next(held.glob("checkpoint/best-*")))
    line = refused(*RUN, "--resume", output_dir=held)
    assert_begins(line, held)
    assert "holds no run of this program, or a damaged one" in line


@pytest.mark.parametrize("held", ["unfinished"], indirect=True)
def test_a_run_that_cannot_be_written_is_not_continued(refused, held, monkeypatch):
    monkeypatch.setattr(output_dir.os, "access", lambda path, mode: Path(path) != held)
    line = refused(*RUN, "--resume", output_dir=held)
    assert f"--output_dir: cannot write to {held}, no permission" in line


FOREIGN = {
    "a photo": {"cat.jpg": "x"},
    "a result of something else": {"result.json": '{"accuracy": 1}'},
    "a result that is no JSON": {"result.json": "accuracy = 1"},
    "a history of something else": {"history.csv": "x"},
    "a checkpoint of something else": {"checkpoint/epoch-0007/weights": "x"},
    "a state of something else": {"checkpoint/epoch-0007/state.json": "[]"},
    "a checkpoint without weights": {"checkpoint/epoch-0007/state.json": '{"epoch": 7}'},
    "a picture": {"curves.png": "x"},
}


@pytest.mark.parametrize("flags", [(), SHORT, (*SHORT, "--resume")], ids=["both", "one", "resume"])
@pytest.mark.parametrize("content", FOREIGN)
def test_a_directory_of_something_else_is_refused(refused, tmp_path, content, flags):
    directory = tmp_path / "theirs"
    for name, text in FOREIGN[content].items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    assert_begins(refused(*flags, output_dir=directory), directory)


@pytest.mark.parametrize("below", ["", "below", "far/below"])
def test_an_output_dir_that_cannot_be_made_is_refused(refused, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("kept")
    for flags in (SHORT, (), (*SHORT, "--resume")):
        line = refused(*flags, output_dir=file / below)
        assert line.startswith("mln_keras.py: --output_dir: cannot write to ")
        assert line.endswith(f", {file} is a file\n")
    assert file.read_text() == "kept"


@pytest.mark.parametrize("below", ["", "below"])
def test_a_link_to_nothing_is_refused(refused, tmp_path_factory, below):
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to("gone")
    for flags in (SHORT, (), (*SHORT, "--resume")):
        line = refused(*flags, output_dir=link / below)
        assert line.startswith(f"mln_keras.py: --output_dir: cannot make {link / below}")
        assert line.endswith(f", {link} is a link to gone, not there\n")


@pytest.mark.parametrize("flags", [(), SHORT, (*SHORT, "--resume")], ids=["both", "one", "resume"])
@pytest.mark.parametrize("method", ["iterdir", "exists"])
def test_a_directory_that_cannot_be_read_is_refused(refused, tmp_path, monkeypatch, method, flags):
    directory, original = tmp_path / "locked", getattr(Path, method)
    directory.mkdir()

    def locked(path, **options):
        if path.is_relative_to(directory):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, **options)

    monkeypatch.setattr(Path, method, locked)
    line = refused(*flags, output_dir=directory)
    assert line.startswith(f"mln_keras.py: --output_dir: cannot read {directory}")
    assert line.endswith(" (Permission denied)\n")


def test_only_one_process_trains_in_a_directory(refused, tmp_path):
    with output_dir.claim_directory(tmp_path / "out"):
        line = refused("--dataset", "digits")
    assert line == (
        f"mln_keras.py: --output_dir: another process is training in {tmp_path / 'out'}\n"
    )
    with output_dir.claim_directory(tmp_path / "out"):
        pass


@pytest.mark.slow
def test_a_run_that_is_made_while_data_are_loaded_is_seen(tmp_path, capsys, monkeypatch):
    load, found = run.load_splits, []

    def load_slowly(settings, recipe):
        monkeypatch.setattr(run, "load_splits", load)
        found.append(main(*flags, "--seed", "0"))
        return load(settings, recipe)

    flags = ("--dataset", "digits", "--method", "cross_entropy", "--epochs", "1",
             "--output_dir", tmp_path / "out")  # fmt: skip
    monkeypatch.setattr(run, "load_splits", load_slowly)
    assert (main(*flags, "--seed", "7"), found) == (2, [0])
    assert "holds another run (--seed was 0, now 7)" in capsys.readouterr().err
    assert read_result(tmp_path / "out")["seed"] == 0


def test_a_run_goes_on_with_its_data_elsewhere(finished_run):
    flags = read_result(finished_run.directory)["flags"]
    moved = flags | {"data_dir": "elsewhere", "output_dir": "x", "resume": True}
    assert output_dir.find_run(finished_run.directory, moved, True)["seed"] == 0


def test_no_teacher_is_trained_for_another_runs_directory(refused, held, monkeypatch):
    def train(*_, **__):
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(teacher, "teacher_probabilities", train)
    assert "another run" in refused(*RUN, "--noise", "feature_dependent", output_dir=held)
