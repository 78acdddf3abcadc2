"""nar-distill: make a data set whose training targets are the outputs of an autoregressive teacher.

Example:

    nar-distill DATA-BIN --teacher ar.pt --out DATA-BIN-KD --beam 5 --lenpen 0.6 --max-tokens 8000

The hypotheses are those of fairseq-generate with the same flags. The other splits and the dictionaries are copied.
A run that was killed continues when it is started again. Further flags are fairseq-generate's. --num-shards N
--shard-id I decodes one of N parts, I from 0 to N - 1; the process that finishes last writes the data set. DIR/.distill
has the report and the finished batches; it may be deleted when the data set is complete.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from fairseq import options
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.cli.command import one_line_errors, only_results
from nar_plugins.corpora.distill import distil
from nar_plugins.corpora.distill_job import SETTINGS, Job
from nar_plugins.corpora.filters import Limits
from nar_plugins.models.flags import flag

# the generation options of fairseq that are honoured here, or that have no effect anywhere; others are refused
HONOURED = {*SETTINGS["generation"], "no_seed_provided", "no_early_stop", "no_beamable_mm", "_name"}
REFUSED = {
    **{f.name: "leave it out" for f in fields(GenerationConfig) if f.name not in HONOURED},
    "sampling": "a run that was stopped could not go on as it would have",
    "path": "the teacher is --teacher",
    "gen_subset": "the split is --train-subset's",
    "results_path": "the folder is --out",
    "post_process": "a data set has the dictionary's tokens",
    "model_overrides": "leave it out",
    "distributed_world_size": "use --num-shards and --shard-id",
    "task": "teachers are decoded under nar_translation",
}


def build_parser() -> argparse.ArgumentParser:
    parser = options.get_generation_parser(default_task="nar_translation")
    parser.prog, parser.description = "nar-distill", __doc__
    parser.usage = (
        "nar-distill DATA-BIN --teacher CKPT[:CKPT...] --out DIR [--mix] [--filter] [flags of fairseq-generate]"
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "The options of other generators than fairseq's search are refused."
    group, limits = parser.add_argument_group("distillation"), Limits()
    group.add_argument(
        "--teacher",
        required=True,
        metavar="CKPT",
        help="autoregressive checkpoint of nar_translation or translation; a.pt:b.pt is an ensemble",
    )
    group.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the new data set")
    group.add_argument("--mix", action="store_true", help="write the original pairs first, then the distilled ones")
    group.add_argument("--filter", action="store_true", help="drop rejected outputs (default: only count them)")
    group.add_argument(
        "--max-ratio",
        type=float,
        default=limits.ratio,
        metavar="R",
        help="reject if one side has more than R times the tokens of the other, plus 5 (default: %(default)s)",
    )
    group.add_argument(
        "--max-repeats",
        type=int,
        default=limits.repeats,
        metavar="N",
        help="reject if an n-gram of 1 to 8 tokens repeats more than N times in a row, and more often than any in the "
        "source (default: %(default)s)",
    )
    group.add_argument(
        "--max-unknown",
        type=float,
        default=limits.unknown,
        metavar="P",
        help="reject if a larger share of the tokens is <unk> (default: %(default)s)",
    )
    return parser


def refuse(args, parser) -> None:
    """Raise for an option of fairseq-generate that nar-distill does not honour."""
    for name, hint in REFUSED.items():
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"{flag(name)} is no option of nar-distill: {hint}")
    if args.generator not in ("auto", "beam"):
        raise ValueError(
            f"--generator {args.generator} is no option of nar-distill: a teacher is decoded by fairseq's search"
        )
    if args.dataset_impl == "raw":
        raise ValueError("--dataset-impl raw: binarise the text with fairseq-preprocess first")
    if not 0 <= args.shard_id < args.num_shards:
        raise ValueError(
            f"--shard-id {args.shard_id}: with --num-shards {args.num_shards} it is 0 to {args.num_shards - 1}"
        )


def main(argv=None) -> None:
    parser = build_parser()
    args = options.parse_args_and_arch(parser, input_args=argv)
    with one_line_errors("nar-distill"), only_results():
        refuse(args, parser)
        args.generator = "beam"
        limits = Limits(args.max_ratio, args.max_repeats, args.max_unknown)
        job = Job(args.teacher, args.out, args.mix, args.filter, limits)
        print(distil(convert_namespace_to_omegaconf(args), job))


if __name__ == "__main__":
    main()
