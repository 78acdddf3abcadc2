"""Output files and folders: checked before a long run, written complete or not at all; and what identifies a
content."""

import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator


def check_output(path: Path, flag: str, makes_folder: bool = False) -> None:
    """Raise when no file can be written to ``path``, before the work whose result it gets.

    Args:
        flag: the option that names the file, for the message.
        makes_folder: the command makes the folders that are missing.

    Raises:
        ValueError: there is no such folder, ``path`` is one, or it may not be written.
    """
    folder = path.parent
    while makes_folder and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{flag} {path}: no folder '{folder}'")
    if path.is_dir():
        raise ValueError(f"{flag} {path}: this is a folder, and not a file")
    needed = [place for place in (path, folder) if place.exists()] if replaceable(path) else [path]
    if not all(os.access(place, os.W_OK) for place in needed):
        raise ValueError(f"{flag} {path}: it may not be written: no permission, or a read-only file system")


def check_new_folder(path: Path, flag: str) -> None:
    """Raise when no new folder can be made at ``path``, before the work whose result it gets.

    Args:
        flag: the option that names the folder, for the message.

    Raises:
        ValueError: ``path`` is there, or the folder that it stands in is not, or may not be written.
    """
    if path.exists() or path.is_symlink():
        raise ValueError(f"{flag} {path} is there already: give another one, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {path}: no folder '{path.parent}'")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} {path}: it may not be written: no permission, or a read-only file system")


def replaceable(path: Path) -> bool:
    """False for a device and a pipe."""
    return not path.exists() or path.is_file() or path.is_dir()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``: renamed to ``path`` when it is complete, removed on an error.

    A symbolic link stays, and the file behind it is replaced. A device or a pipe, such as ``/dev/stdout``, cannot be
    replaced: it is written itself.

    Raises:
        OSError: the file cannot be written; it names ``path``.
    """
    if not replaceable(path):
        yield path
        return
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error  # the user knows no temporary file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``: renamed to ``path`` when it is complete, removed on an error.

    Raises:
        OSError: ``path`` is there already, and is no empty folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)  # an empty folder is replaced, another is not
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fingerprint(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:16]


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 with the line ends of the text."""
    with written_whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
