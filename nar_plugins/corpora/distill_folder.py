"""``DIR/.distill``, shared by all processes of a distillation: finished batches, each a line of JSON.

Each run of the command has a file of its own; a line without its end is what a killed run was writing.
"""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, Sequence

import numpy as np


class Folder:
    """``DIR/.distill``: the settings, the finished batches and the report.

    Args:
        out: receives the data set.
        settings: name -> value.
    """

    def __init__(self, out: Path, settings: Dict):
        self.out, self.own = out, out / ".distill"
        self.settings, self.settings_file, self.report = settings, self.own / "settings.json", self.own / "report.txt"
        self.unfinished = f"tmp-{socket.gethostname()}-"  # how this machine's temporary folders begin

    def check(self) -> None:
        """Raise when ``out`` is there and was not made with these settings."""
        if not self.settings_file.exists():
            if self.out.exists() and not (self.out.is_dir() and set(self.out.iterdir()) <= {self.own}):
                raise ValueError(f"{self.out} holds something else: give --out a new folder, or an empty one")
            return
        there, here = json.loads(self.settings_file.read_text(encoding="utf-8")), self.settings
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        differ = [f"{name} is {there.get(name)} there and {here.get(name)} here" for name in names[:3]]
        if differ:
            more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"distilling into an existing different data set, {self.out}: {'; '.join(differ)}{more}: "
                "give the same teacher, data and flags as before, or another --out"
            )

    def claim(self) -> None:
        """Write the settings, unless another process was faster; then they must be the same."""
        self.own.mkdir(parents=True, exist_ok=True)
        with self.temporary() as folder:
            made = folder / "settings.json"
            made.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            try:
                os.link(made, self.settings_file)  # whole, and never over another's
            except FileExistsError:
                self.check()

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder for files that are not ready; a run that is killed leaves it to ``shared`` of a later one."""
        with tempfile.TemporaryDirectory(dir=self.own, prefix=self.unfinished) as name:
            yield Path(name)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While a run works here; what killed runs have left is removed first, when it is certain that no other run
        works.

        Every run holds a shared lock of the folder, which the system drops with the process. Who gets it alone is
        alone, on
        this machine: only its own machine's temporary folders are removed, because not every file system shared by
        several machines tells them of one another's locks. Where there are no locks, nothing is removed.
        """
        self.own.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.own, os.O_RDONLY)
        try:
            if lock(handle, alone=True):
                for left in self.own.glob(f"{self.unfinished}*"):
                    shutil.rmtree(left, ignore_errors=True)
            lock(handle)
            yield
        finally:
            os.close(handle)

    def new_part(self, shard: int, shards: int):
        """A new file for the batches of one run."""
        return open(self.own / f"part-{shard}-of-{shards}-{uuid.uuid4().hex}.jsonl", "xb")

    def records(self, batches: Sequence[Sequence[int]]) -> Dict[int, Dict]:
        """The finished batches by number, of all processes, whatever the number of shards was."""
        found = {}
        for path in sorted(self.own.glob("part-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # what has no end is not a record
                try:
                    record = json.loads(line)
                    number, lines = record["batch"], record["lines"]
                    record["tokens"] = [np.array(tokens, dtype=np.int32) for tokens in record["tokens"]]
                    fits = sorted(lines) == sorted(batches[number]) and len(lines) == len(record["tokens"])
                except (ValueError, KeyError, IndexError):
                    fits = False
                if not fits:
                    raise ValueError(f"{path} is damaged: delete it, and its batches are decoded again")
                found[number] = record
        return found


def lock(handle: int, alone: bool = False) -> bool:
    """Lock an open folder for one process, if that can be had at once, or for several; whether it is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
    except OSError:  # others are at work, or the file system has no locks
        return False
    return True
