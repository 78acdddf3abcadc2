"""A file is written whole, or stays what it was."""

import os
from pathlib import Path

import pytest

from nar_plugins.cli.command import one_line_errors
from nar_plugins.data.whole_file import check_new_folder, check_output, written_whole


def test_the_file_takes_its_place_when_it_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with written_whole(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError("written half")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    for path in (tmp_path / "no" / "x", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as error, written_whole(path) as temporary:
            temporary.write_text("x")
        assert error.value.filename == str(path) and ".tmp" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(FileNotFoundError, match="other"), written_whole(tmp_path / "x"):
        (tmp_path / "other").read_text()


def test_a_command_names_the_file_without_the_systems_number(tmp_path, capsys):
    for status in (1, 2):
        with (
            pytest.raises(SystemExit) as end,
            one_line_errors("nar-x", status),
            written_whole(tmp_path / "no" / "x") as file,
        ):
            file.write_text("x")
        said = end.value.code if status == 1 else capsys.readouterr().err.strip()
        assert said == f"nar-x: {tmp_path}/no/x: No such file or directory"


def test_a_link_stays_and_a_pipe_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "file")
    with written_whole(tmp_path / "link") as temporary:
        temporary.write_text("after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "data" / "file").read_text() == "after"
    read, write = os.pipe()
    check_output(Path(f"/dev/fd/{write}"), "--out")
    with written_whole(Path(f"/dev/fd/{write}")) as temporary:
        temporary.write_text("through a pipe")
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        assert pipe.read() == "through a pipe"


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    def said(path: Path, **how) -> str:
        with pytest.raises(ValueError) as error:
            check_output(path, "--json", **how)
        return str(error.value)

    (tmp_path / "file").write_text("before")
    check_output(tmp_path / "file", "--json")
    check_output(tmp_path / "new", "--json")
    check_output(tmp_path / "no" / "folder" / "new", "--json", makes_folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "before"
    assert said(tmp_path / "no" / "new") == f"--json {tmp_path}/no/new: no folder '{tmp_path}/no'"
    assert said(tmp_path / "file" / "new", makes_folder=True).endswith(f": no folder '{tmp_path}/file'")
    assert said(tmp_path) == f"--json {tmp_path}: this is a folder, and not a file"
    for refused in (tmp_path, tmp_path / "file"):
        monkeypatch.setattr(os, "access", lambda path, mode: path != refused)
        assert said(tmp_path / "file").endswith(
            "/file: it may not be written: no permission, or a read-only file system"
        )


def test_a_place_for_a_new_folder_is_checked_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")

    def said(path: Path) -> str:
        with pytest.raises(ValueError) as error:
            check_new_folder(path, "--out")
        return str(error.value)

    check_new_folder(tmp_path / "new", "--out")
    for name in ("file", "dangling", "."):
        path = tmp_path / name
        assert said(path) == f"--out {path} is there already: give another one, or remove it"
    assert said(tmp_path / "no" / "new") == f"--out {tmp_path}/no/new: no folder '{tmp_path}/no'"
    assert said(tmp_path / "file" / "new") == f"--out {tmp_path}/file/new: no folder '{tmp_path}/file'"
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    assert said(tmp_path / "new").endswith("it may not be written: no permission, or a read-only file system")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file"]
