"""Sequence-level distillation (Kim and Rush 2016): the training targets of a data set become a teacher's outputs.

The training split is cut into the batches of ``fairseq-generate``. Every finished batch is a line of JSON in
``DIR/.distill``, where each run of the command writes its own file. A killed run leaves an incomplete line, which is
decoded again. Any number of runs share the batches; the run that finds all of them finished writes the data set, and
the index of the training targets last. The settings determine everything that is written, so writing it twice is safe.
"""

import json
import sys
from typing import Dict, Sequence, Tuple

import numpy as np
import torch
from fairseq import tasks, utils
from tqdm import tqdm

from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.checkpoint_io.teachers import load_teacher
from nar_plugins.corpora.distill_data import Data, write
from nar_plugins.corpora.distill_folder import Folder
from nar_plugins.corpora.distill_job import Job, settings_of
from nar_plugins.generators.base import longest_output
from nar_plugins.hub.decoder import Decoder


def distil(cfg, job: Job) -> str:
    """Decode this process's share of the training split; write the data set when all shares are finished.

    Args:
        cfg: of ``fairseq-generate``; the share is ``--shard-id`` of ``--num-shards``. ``--num-workers`` is ignored:
            this process collates the batches.

    Returns:
        a report for the user: what was done and what is missing.

    Raises:
        ValueError: the data, the teacher or ``job.out`` cannot be used.
    """
    for path in utils.split_paths(job.teacher):
        read_mapped(path)
    if cfg.dataset.max_tokens is None and cfg.dataset.batch_size is None:
        cfg.dataset.max_tokens = 12000  # as fairseq-generate
    task = tasks.setup_task(cfg.task)
    data = Data(task.cfg, cfg.dataset.train_subset)
    folder = Folder(job.out, settings_of(cfg, job, task, data.files))
    folder.check()
    if (job.out / data.last_file).exists():
        with folder.shared():
            pass
        return f"{folder.report.read_text(encoding='utf-8')}{job.out} is done already"

    decoder = Decoder(cfg, task, [load_teacher(path, task) for path in utils.split_paths(job.teacher)])
    dataset, batches = make_batches(cfg, task, decoder.models)
    with folder.shared():
        folder.claim()
        decode(cfg, decoder, dataset, batches, folder)

        records = folder.records(batches)
        shards, missing = cfg.dataset.num_shards, sorted(set(range(len(batches))) - records.keys())
        if missing:
            shard_ids = ", ".join(map(str, sorted({batch % shards for batch in missing})))
            count = f"{len(missing)} of {len(batches)} batches are still missing"
            return f"{count}, of --num-shards {shards} --shard-id {shard_ids}"
        report = write(job, task, data, records, folder)
    return f"{report}{job.out} is complete"


def make_batches(cfg, task, models) -> Tuple[torch.utils.data.Dataset, Sequence[Sequence[int]]]:
    """The training split, and the line numbers of every batch, as in ``fairseq-generate``."""
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


def decode(cfg, decoder: Decoder, dataset, batches: Sequence[Sequence[int]], folder: Folder) -> None:
    """Decode this run's unfinished batches, as ``fairseq-generate`` would."""
    shard, shards = cfg.dataset.shard_id, cfg.dataset.num_shards
    finished = folder.records(batches)
    share = range(shard, len(batches), shards)  # as fairseq assigns batches to processes
    remaining = [number for number in share if number not in finished]
    if not remaining:
        return
    lines, lines_left = (sum(len(batches[number]) for number in numbers) for numbers in (share, remaining))
    seconds = 0.5 if sys.stderr.isatty() else 30
    bar = tqdm(
        total=lines, initial=lines - lines_left, unit=" lines", mininterval=seconds, disable=cfg.common.no_progress_bar
    )
    with folder.new_part(shard, shards) as part, bar:
        for number in remaining:
            sample = dataset.collater([dataset[i] for i in batches[number]])
            hypotheses = decoder(sample)
            record = {
                "batch": number,
                "lines": sample["id"].tolist(),
                "longest": length_limit(decoder.generator, sample),
                "tokens": [nbest[0]["tokens"].tolist() for nbest in hypotheses],
            }
            part.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            part.flush()
            bar.update(len(hypotheses))


def length_limit(generator, sample: Dict) -> int:
    """The length, without </s>, at which fairseq's search stops every hypothesis of a batch."""
    length = sample["net_input"]["src_tokens"].size(1)
    return longest_output(generator, length, generator.max_len - 1)
