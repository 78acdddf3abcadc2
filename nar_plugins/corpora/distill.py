"""Sequence-level distillation (Kim and Rush 2016): binarised data whose training targets are what a teacher says.

The training split is cut into the batches of ``fairseq-generate``. Every finished batch is a line of JSON in
``DIR/.distill``, where each run of the command has a file of its own; a line without its end is what a killed run was
writing, and is decoded again. Any number of runs share the batches; the one that finds all of them finished writes the
data set, the index of the training targets last. All that is written follows from the settings, so that writing it
twice does no harm.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from fairseq import tasks, utils
from fairseq.data import data_utils, indexed_dataset
from tqdm import tqdm

from nar_plugins.checkpoint_io.read import place, read_mapped
from nar_plugins.checkpoint_io.teachers import load_teacher
from nar_plugins.corpora.filters import REASONS, Limits, reason

# the flags of fairseq-generate that decide, with the files and the job, what is written
SETTINGS = {
    "generation": (
        "beam",
        "lenpen",
        "max_len_a",
        "max_len_b",
        "min_len",
        "unkpen",
        "unnormalized",
        "temperature",
        "no_repeat_ngram_size",
        "diverse_beam_groups",
        "diverse_beam_strength",
        "diversity_rate",
    ),
    "common": ("seed", "fp16"),
    "dataset": ("train_subset", "max_tokens", "batch_size", "skip_invalid_size_inputs_valid_test"),
    "task": (
        "source_lang",
        "target_lang",
        "decode_dtype",
        "truncate_source",
        "num_batch_buckets",
        "max_source_positions",
        "max_target_positions",
    ),
}


class Job(NamedTuple):
    """What is distilled, and how much of it is kept."""

    teacher: str  # checkpoint, or several as fairseq-generate's --path has them: an ensemble
    out: Path
    mix: bool = False  # the original pairs first, then the distilled ones
    drop: bool = False  # leave broken outputs out
    limits: Limits = Limits()  # of what is broken


def distil(cfg, job: Job) -> str:
    """Decode this process's share of the training split; write the data set if it was the last one missing.

    Args:
        cfg: of ``fairseq-generate``; the share is ``--shard-id`` of ``--num-shards``. Batches are put together in this
            process, whatever ``--num-workers`` says.

    Returns:
        what was done and what is missing, to be shown to the user.

    Raises:
        ValueError: the data, the teacher or ``job.out`` cannot be used; the message says why.
    """
    for path in utils.split_paths(job.teacher):
        read_mapped(path)
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate
    task = tasks.setup_task(cfg.task)
    data = Data(task.cfg, cfg.dataset.train_subset)
    folder = Folder(job.out, settings_of(cfg, job, task, data))
    folder.check()
    if (job.out / data.last_file).exists():
        with folder.shared():
            pass
        return f"{folder.report.read_text(encoding='utf-8')}{job.out} is done already"

    models, generator = load(cfg, task, job.teacher)
    dataset, batches = make_batches(cfg, task, models)
    with folder.shared():
        folder.claim()
        decode(cfg, task, models, generator, dataset, batches, folder)

        records = folder.records(batches)
        shards, missing = cfg.dataset.num_shards, sorted(set(range(len(batches))) - records.keys())
        if missing:
            whose = ", ".join(map(str, sorted({batch % shards for batch in missing})))
            still = f"{len(missing)} of {len(batches)} batches are still missing"
            return f"{still}, of --num-shards {shards} --shard-id {whose}"
        report = write(job, task, data, records, folder)
    return f"{report}{job.out} is complete"


# -- what is read
# ----------------------------------------------------------------------------------------------------------


class Data:
    """The files of a binarised data set: its dictionaries and all splits but one are copied, the targets of that one
    made.

    What else may be in the folder, fertilities for example, belongs to the targets that it was made of.

    Args:
        cfg: the task's.
        split: the one that is distilled.
    """

    def __init__(self, cfg, split: str):
        folders = utils.split_paths(cfg.data)
        if len(folders) > 1:
            raise ValueError(f"{cfg.data} names {len(folders)} data folders: distil them one by one")
        self.folder = Path(folders[0])
        source, target = cfg.source_lang, cfg.target_lang
        pair = f"{source}-{target}"
        if not (self.folder / f"{split}.{pair}.{source}.idx").exists():
            pair = f"{target}-{source}"  # as fairseq does, take data that were binarised for the other direction
            raw = [self.folder / f"{split}.{name}.{source}" for name in (f"{source}-{target}", pair)]
            if any(file.is_file() for file in raw) and not (self.folder / f"{split}.{pair}.{source}.idx").exists():
                raise ValueError(f"{self.folder} holds {split} as raw text: binarise it with fairseq-preprocess first")
        if (self.folder / f"{split}1.{pair}.{source}.idx").exists():
            raise ValueError(f"{self.folder} holds {split}1 beside {split}: distil a folder with one training split")
        self.impl, self.stems = cfg.dataset_impl, [f"{split}.{pair}.{language}" for language in (source, target)]
        self.last_file = f"{self.stems[1]}.idx"
        files = [p for p in sorted(self.folder.iterdir()) if p.suffix in (".bin", ".idx") or p.name.startswith("dict.")]
        self.copied = [p for p in files if not p.name.startswith(f"{split}.")]
        self.files = [*self.copied, *(p for p in files if p.stem in self.stems)]

    def sides(self) -> List[Sequence[torch.Tensor]]:
        """Source (S,) and target (T,) int64 of every line, as the files have them."""
        return [data_utils.load_indexed_dataset(str(self.folder / stem), None, self.impl) for stem in self.stems]


def settings_of(cfg, job: Job, task, data: Data) -> Dict:
    """All that decides what is written, in values that JSON keeps."""
    values = {"task": task.cfg, "generation": cfg.generation, "common": cfg.common, "dataset": cfg.dataset}
    flags = {name: getattr(values[group], name) for group, names in SETTINGS.items() for name in names}
    flags = {
        name: value if isinstance(value, (int, float, type(None))) else str(value) for name, value in flags.items()
    }
    teachers = ":".join(fingerprint(Path(path)) for path in utils.split_paths(job.teacher))
    files = {"teacher": teachers, **{path.name: fingerprint(path) for path in data.files}}
    return {**files, **flags, "mix": job.mix, "filter": job.drop, **job.limits._asdict()}


def fingerprint(path: Path) -> str:
    """A hash of a file's content."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:16]


def load(cfg, task, teacher: str) -> Tuple[List[torch.nn.Module], object]:
    """The teachers where they will decode, and the generator, as ``fairseq-generate`` has them."""
    models = [load_teacher(path, task) for path in utils.split_paths(teacher)]
    place(models, cfg)
    return models, task.build_generator(models, cfg.generation)


def make_batches(cfg, task, models) -> Tuple[torch.utils.data.Dataset, Sequence[Sequence[int]]]:
    """The training split, and the numbers of the lines in every batch, as ``fairseq-generate`` makes them."""
    split = cfg.dataset.train_subset
    task.load_dataset(split)
    dataset = task.dataset(split)
    positions = utils.resolve_max_positions(task.max_positions(), *(model.max_positions() for model in models))
    _, too_long = dataset.filter_indices_by_size(np.arange(len(dataset)), positions)
    skip = cfg.dataset.skip_invalid_size_inputs_valid_test
    if len(too_long) and not skip:
        line, sizes = too_long[0], tuple(map(int, dataset.size(too_long[0])))
        raise ValueError(
            f"{len(too_long)} lines of {split} are longer than the positions {positions}, the first is line {line} "
            f"{sizes}: --skip-invalid-size-inputs-valid-test leaves them out"
        )
    iterator = task.get_batch_iterator(
        dataset,
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=positions,
        ignore_invalid_inputs=skip,
        seed=cfg.common.seed,
    )
    return dataset, iterator.frozen_batches


# -- the folder, shared by all processes
# ----------------------------------------------------------------------------------


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


# -- decoding and writing
# ---------------------------------------------------------------------------------------------------


def decode(cfg, task, models, generator, dataset, batches: Sequence[Sequence[int]], folder: Folder) -> None:
    """Decode those of this run's batches that are not finished, as ``fairseq-generate`` would."""
    shard, shards = cfg.dataset.shard_id, cfg.dataset.num_shards
    finished = folder.records(batches)
    share = range(shard, len(batches), shards)  # as fairseq deals batches out to processes
    todo = [number for number in share if number not in finished]
    if not todo:
        return
    cuda = next(models[0].parameters()).is_cuda
    lines, left = (sum(len(batches[number]) for number in numbers) for numbers in (share, todo))
    seconds = 0.5 if sys.stderr.isatty() else 30
    bar = tqdm(
        total=lines, initial=lines - left, unit=" lines", mininterval=seconds, disable=cfg.common.no_progress_bar
    )
    with folder.new_part(shard, shards) as part, bar:
        for number in todo:
            sample = dataset.collater([dataset[i] for i in batches[number]])
            hypotheses = task.inference_step(generator, models, utils.move_to_cuda(sample) if cuda else sample)
            record = {
                "batch": number,
                "lines": sample["id"].tolist(),
                "longest": longest(generator, sample),
                "tokens": [best[0]["tokens"].tolist() for best in hypotheses],
            }
            part.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            part.flush()
            bar.update(len(hypotheses))


def longest(generator, sample: Dict) -> int:
    """Tokens, </s> not counted, after which fairseq's search ends every hypothesis of a batch."""
    length = sample["net_input"]["src_tokens"].size(1)
    return min(int(generator.max_len_a * length + generator.max_len_b), generator.max_len - 1)


def write(job: Job, task, data: Data, records: Dict[int, Dict], folder: Folder) -> str:
    """Write the data set from all finished batches; returns the report."""
    said = {line: tokens for record in records.values() for line, tokens in zip(record["lines"], record["tokens"])}
    limits = {line: record["longest"] for record in records.values() for line in record["lines"]}
    sources, targets = data.sides()
    unk = task.target_dictionary.unk()
    why = {line: reason(sources[line].numpy(), said[line], limits[line], job.limits, unk) for line in sorted(said)}
    kept = [line for line in why if why[line] is None or not job.drop]
    originals = range(len(sources)) if job.mix else []
    if not kept:
        raise ValueError(f"none of {len(sources)} lines would be left: give other limits, or no --filter")
    different = len({said[line].tobytes() for line in kept})
    report = report_of(job, len(sources), len(kept), different, Counter(why.values()))
    sides = (
        (sources[line] for line in (*originals, *kept)),
        (
            targets[line] if original else torch.from_numpy(said[line])
            for original, lines in ((True, originals), (False, kept))
            for line in lines
        ),
    )

    with folder.temporary() as made:
        for path in data.copied:
            shutil.copyfile(path, made / path.name)
        for lines, stem, dictionary in zip(sides, data.stems, (task.source_dictionary, task.target_dictionary)):
            binarise(lines, str(made / stem), len(dictionary))
        (made / folder.report.name).write_text(report, encoding="utf-8")
        os.replace(made / folder.report.name, folder.report)
        for path in sorted(made.iterdir(), key=lambda path: path.name == data.last_file):
            os.replace(path, job.out / path.name)
    return report


def binarise(lines: Iterable[torch.Tensor], stem: str, vocabulary: int) -> None:
    """Write STEM.bin and STEM.idx as ``fairseq-preprocess`` does."""
    builder = indexed_dataset.make_builder(f"{stem}.bin", "mmap", vocabulary)
    for tokens in lines:
        builder.add_item(tokens)
    builder.finalize(f"{stem}.idx")


def report_of(job: Job, lines: int, kept: int, different: int, broken: Counter) -> str:
    """What became of every line.

    Args:
        different: how many different outputs the kept lines have.
        broken: lines by reason, None for those with nothing wrong.
    """
    said = [f"teacher: {job.teacher}", f"lines: {lines}"]
    if job.mix:
        said.append(f"original pairs written first: {lines}")
    few = " (very few: the teacher hardly heeds its sources)" if kept > 10 * different else ""
    said += [f"distilled pairs written: {kept}", f"different outputs: {different}{few}"]
    said += [f"left out, longer than the positions: {lines - sum(broken.values())}"]
    said += [f"{'dropped' if job.drop else 'kept (--filter drops them)'}, {name}: {broken[name]}" for name in REASONS]
    return "\n".join(said) + "\n"
