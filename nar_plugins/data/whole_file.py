"""Atomic writing: a file or a folder exists complete or not at all; and what identifies a file's content."""

import hashlib
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``: renamed to ``path`` when it is complete, removed on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
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
