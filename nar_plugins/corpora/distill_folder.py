"""``DIR/.distill``, shared by all processes of a distillation: finished batches, each a line of JSON.

Each run of the command writes its own file. A killed run leaves an incomplete line.
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
        out: folder for the data set.
        settings: name -> value.
    """

    def __init__(self, out: Path, settings: Dict):
        self.out, self.state_folder = out, out / ".distill"
        self.settings, self.settings_file, self.report = (
            settings,
            self.state_folder / "settings.json",
            self.state_folder / "report.txt",
        )
        self.unfinished = f"tmp-{socket.gethostname()}-"  # prefix of this machine's temporary folders

    def check(self) -> None:
        """Raise when ``out`` exists and was not made with these settings."""
        if not self.settings_file.exists():
            if self.out.exists() and not (self.out.is_dir() and set(self.out.iterdir()) <= {self.state_folder}):
                raise ValueError(f"{self.out} holds something else: give --out a new folder, or an empty one")
            return
        stored, given = json.loads(self.settings_file.read_text(encoding="utf-8")), self.settings
        names = [name for name in {**given, **stored} if given.get(name) != stored.get(name)]
        differ = [f"{name} is {stored.get(name)} there and {given.get(name)} here" for name in names[:3]]
        if differ:
            more = f"; and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"distilling into an existing different data set, {self.out}: {'; '.join(differ)}{more}: "
                "give the same teacher, data and flags as before, or another --out"
            )

    def claim(self) -> None:
        """Write the settings; if another process has written them first, raise unless they are the same."""
        self.state_folder.mkdir(parents=True, exist_ok=True)
        with self.temporary() as folder:
            temporary = folder / "settings.json"
            temporary.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            try:
                os.link(temporary, self.settings_file)  # atomic, and never overwrites another's
            except FileExistsError:
                self.check()

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A folder for incomplete files; if the run is killed, ``shared`` of a later run removes it."""
        with tempfile.TemporaryDirectory(dir=self.state_folder, prefix=self.unfinished) as name:
            yield Path(name)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Lock the folder during a run; first remove what killed runs have left, if no other run is active.

        Every run holds a shared lock on the folder, which the system releases when the process ends. A process that
        gets an exclusive lock is the only one on this machine. It removes temporary folders of this machine only,
        because not every network file system shares locks between machines. Without locks nothing is removed.
        """
        self.state_folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.state_folder, os.O_RDONLY)
        try:
            if lock(handle, exclusive=True):
                for leftover in self.state_folder.glob(f"{self.unfinished}*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            lock(handle)
            yield
        finally:
            os.close(handle)

    def new_part(self, shard: int, shards: int):
        """A new file for the batches of one run."""
        return open(self.state_folder / f"part-{shard}-of-{shards}-{uuid.uuid4().hex}.jsonl", "xb")

    def records(self, batches: Sequence[Sequence[int]]) -> Dict[int, Dict]:
        """The finished batches of all processes by number; the number of shards may differ between runs."""
        records = {}
        for path in sorted(self.state_folder.glob("part-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last part is empty, or an incomplete record
                try:
                    record = json.loads(line)
                    number, lines = record["batch"], record["lines"]
                    record["tokens"] = [np.array(tokens, dtype=np.int32) for tokens in record["tokens"]]
                    fits = sorted(lines) == sorted(batches[number]) and len(lines) == len(record["tokens"])
                except (ValueError, KeyError, IndexError):
                    fits = False
                if not fits:
                    raise ValueError(f"{path} is damaged: delete it, and its batches are decoded again")
                records[number] = record
        return records


def lock(handle: int, exclusive: bool = False) -> bool:
    """Lock an open folder, exclusively (without waiting) or shared; returns whether it is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError:  # another run is active, or the file system has no locks
        return False
    return True
