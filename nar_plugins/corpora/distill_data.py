"""The original data set, and the distilled one that is written."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Dict, Iterable, List, Sequence

import torch
from fairseq import utils
from fairseq.data import data_utils, indexed_dataset

from nar_plugins.corpora.distill_folder import Folder
from nar_plugins.corpora.distill_job import Job
from nar_plugins.corpora.filters import REASONS, reject_reason
from nar_plugins.data.splits import BINARISED, RAW, exists, find_stems


class Data:
    """The files of a binarised data set: one split is distilled, the other splits and the dictionaries are copied.

    Other files in the folder, fertilities for example, are not copied: they belong to the original targets.

    Args:
        cfg: the task's.
        split: the split to distil.
    """

    def __init__(self, cfg, split: str):
        folders = utils.split_paths(cfg.data)
        if len(folders) > 1:
            raise ValueError(f"{cfg.data} names {len(folders)} data folders: distil them one by one")
        self.folder = Path(folders[0])
        source, target = cfg.source_lang, cfg.target_lang

        def stems(name: str, ending: str) -> List[str]:
            return find_stems(folders[0], name, source, target, [ending])

        binarised, raw = stems(split, BINARISED), stems(split, RAW)
        if not exists(binarised[0], [BINARISED]) and exists(raw[0], [RAW]):
            raise ValueError(f"{self.folder} holds {split} as raw text: binarise it with fairseq-preprocess first")
        if exists(stems(f"{split}1", BINARISED)[0], [BINARISED]):
            raise ValueError(f"{self.folder} holds {split}1 beside {split}: distil a folder with one training split")
        self.impl, self.stems = cfg.dataset_impl, [Path(stem).name for stem in binarised]
        self.last_file = f"{self.stems[1]}.idx"
        files = [p for p in sorted(self.folder.iterdir()) if p.suffix in (".bin", ".idx") or p.name.startswith("dict.")]
        self.copied = [p for p in files if not p.name.startswith(f"{split}.")]
        self.files = [*self.copied, *(p for p in files if p.stem in self.stems)]

    def sides(self) -> List[Sequence[torch.Tensor]]:
        """Source (S,) and target (T,) int64 of every line."""
        return [data_utils.load_indexed_dataset(str(self.folder / stem), None, self.impl) for stem in self.stems]


def write(job: Job, task, data: Data, records: Dict[int, Dict], folder: Folder) -> str:
    """Write the data set from all finished batches; returns the report."""
    outputs = {line: tokens for record in records.values() for line, tokens in zip(record["lines"], record["tokens"])}
    limits = {line: record["longest"] for record in records.values() for line in record["lines"]}
    sources, targets = data.sides()
    unk = task.target_dictionary.unk()
    reasons = {
        line: reject_reason(sources[line].numpy(), outputs[line], limits[line], job.limits, unk)
        for line in sorted(outputs)
    }
    kept = [line for line in reasons if reasons[line] is None or not job.drop]
    originals = range(len(sources)) if job.mix else []
    if not kept:
        raise ValueError(f"none of {len(sources)} lines would be left: give other limits, or no --filter")
    distinct = len({outputs[line].tobytes() for line in kept})
    report = report_of(job, len(sources), len(kept), distinct, Counter(reasons.values()))
    sides = (
        (sources[line] for line in (*originals, *kept)),
        (
            targets[line] if original else torch.from_numpy(outputs[line])
            for original, lines in ((True, originals), (False, kept))
            for line in lines
        ),
    )

    with folder.temporary() as temporary:
        for path in data.copied:
            shutil.copyfile(path, temporary / path.name)
        for lines, stem, dictionary in zip(sides, data.stems, (task.source_dictionary, task.target_dictionary)):
            binarise(lines, str(temporary / stem), len(dictionary))
        (temporary / folder.report.name).write_text(report, encoding="utf-8")
        os.replace(temporary / folder.report.name, folder.report)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == data.last_file):
            os.replace(path, job.out / path.name)
    return report


def binarise(lines: Iterable[torch.Tensor], stem: str, vocabulary: int) -> None:
    """Write STEM.bin and STEM.idx as ``fairseq-preprocess`` does."""
    builder = indexed_dataset.make_builder(f"{stem}.bin", "mmap", vocabulary)
    for tokens in lines:
        builder.add_item(tokens)
    builder.finalize(f"{stem}.idx")


def report_of(job: Job, lines: int, kept: int, distinct: int, reasons: Counter) -> str:
    """How many lines were kept, dropped and left out.

    Args:
        distinct: number of distinct outputs in the kept lines.
        reasons: decoded lines by the reason to reject them; None for accepted lines.
    """
    report = [f"teacher: {job.teacher}", f"lines: {lines}"]
    if job.mix:
        report.append(f"original pairs written first: {lines}")
    few = " (very few: the teacher hardly heeds its sources)" if kept > 10 * distinct else ""
    report += [f"distilled pairs written: {kept}", f"different outputs: {distinct}{few}"]
    report += [f"left out, longer than the positions: {lines - sum(reasons.values())}"]
    action = "dropped" if job.drop else "kept (--filter drops them)"
    report += [f"{action}, {reason}: {reasons[reason]}" for reason in REASONS]
    return "\n".join(report) + "\n"
