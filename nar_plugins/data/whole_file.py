"""Atomic writing: a file or a folder exists complete or not at all."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``: renamed to ``path`` when it is complete, removed on an error."""
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, likewise; ``path`` must not exist, or be an empty folder."""
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """A hidden name beside ``path``, of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
