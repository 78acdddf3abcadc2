"""A file is written whole, or stays what it was."""

import pytest

from nar_plugins.data.whole_file import written_whole


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
