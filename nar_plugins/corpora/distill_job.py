"""A job of ``nar-distill``, and the settings that identify it when it is continued."""

from pathlib import Path
from typing import Dict, NamedTuple, Sequence

from fairseq import utils

from nar_plugins.corpora.filters import Limits
from nar_plugins.data.whole_file import fingerprint

# the flags of fairseq-generate that, with the files and the job, determine what is written
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
    """The teacher, the output folder, and which outputs are kept."""

    teacher: str  # a checkpoint, or several joined by colons for an ensemble, as in fairseq-generate's --path
    out: Path
    mix: bool = False  # write the original pairs first, then the distilled ones
    drop: bool = False  # drop rejected outputs
    limits: Limits = Limits()  # beyond which an output is rejected


def settings_of(cfg, job: Job, task, files: Sequence[Path]) -> Dict:
    """Everything that determines what is written, as JSON values.

    Args:
        cfg: of ``fairseq-generate``.
        files: the data set's.
    """
    values = {"task": task.cfg, "generation": cfg.generation, "common": cfg.common, "dataset": cfg.dataset}
    flags = {name: getattr(values[group], name) for group, names in SETTINGS.items() for name in names}
    flags = {
        name: value if isinstance(value, (int, float, type(None))) else str(value) for name, value in flags.items()
    }
    teachers = ":".join(fingerprint(Path(path)) for path in utils.split_paths(job.teacher))
    hashes = {"teacher": teachers, **{path.name: fingerprint(path) for path in files}}
    return {**hashes, **flags, "mix": job.mix, "filter": job.drop, **job.limits._asdict()}
