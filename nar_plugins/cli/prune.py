"""nar-prune: a smaller model, without the attention heads, feed-forward units and layers that matter least.

    nar-prune ctc.pt --data bin --prune-heads 0.5 --prune-ffn 0.5 --out small.pt
    nar-prune ctc.pt --data bin --encoder-layers-to-keep 0,2 --decoder-layers-to-keep 0,2 --out shallow.pt
    nar-prune ctc.pt --data bin --prune-heads 0.5 --prune-ffn 0.5 --dry-run        only the report

    fairseq-train bin ... --finetune-from-model small.pt        then, with the flags of the first training

What matters is measured on the validation data. The new checkpoint is used as the one before, without further flags.
"""

import argparse
from pathlib import Path
from typing import List

import nar_plugins  # noqa: F401  (registers the task before a checkpoint is read)
from nar_plugins.cli.command import new_parser, one_line_errors, only_results
from nar_plugins.modules.pruned import FEED_FORWARD, SIDES
from nar_plugins.pruning.choice import SCOPES
from nar_plugins.pruning.job import Plan, Pruned, prune


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-prune", __doc__)
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a nat, cmlm, dag, blockwise or bang")
    parser.add_argument("--data", required=True, metavar="BIN", help="folder of binarised data")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the new checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="write nothing: only report")
    parser.add_argument(
        "--prune-heads", type=float, default=0.0, metavar="X", help="share of the attention heads to remove (0)"
    )
    parser.add_argument(
        "--prune-ffn", type=float, default=0.0, metavar="X", help="share of the feed-forward units to remove (0)"
    )
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="global",
        help="global (default): of all heads, and of all units, the least important, wherever they are; layer: the "
        "same share of every attention and of every feed-forward layer",
    )
    parser.add_argument(
        "--multiple",
        type=int,
        default=8,
        metavar="N",
        help="round the feed-forward units that a layer keeps to a multiple of N (8)",
    )
    for side in SIDES:
        parser.add_argument(
            f"--{side}-layers-to-keep",
            metavar="0,2,..",
            help=f"the layers of the {side} to keep, counted from 0; the others are removed",
        )
    parser.add_argument(
        "--embedding-rank",
        type=int,
        metavar="K",
        help="factorise the table of words: K numbers a word and a matrix K times the width (nat, cmlm and dag)",
    )
    parser.add_argument("--split", default="valid", help="what importance and loss are measured on (valid)")
    parser.add_argument("--max-tokens", type=int, default=4000, metavar="N", help="tokens of a batch (4000)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-prune"), only_results():
        if (args.out is None) != args.dry_run:
            raise ValueError("give --out FILE, or --dry-run for the report alone")
        layers = {side: getattr(args, f"{side}_layers_to_keep") for side in SIDES}
        plan = Plan(args.prune_heads, args.prune_ffn, args.scope, args.multiple, layers, args.embedding_rank)
        done = prune(args.checkpoint, args.data, args.out, plan, args.split, args.max_tokens, args.cpu)
        print(report(done, args.split))
        if args.out is not None:
            print(f"{args.out}: written")


def report(done: Pruned, split: str) -> str:
    """What was done, in lines."""
    lines = [f"{'weights':<12}{'before':>14}{'after':>14}{'ratio':>8}"]
    rows = {**{name: (done.before[name], done.after[name]) for name in done.before}}
    rows["all"] = (sum(done.before.values()), sum(done.after.values()))
    for name, (before, after) in rows.items():
        lines.append(f"{name:<12}{before:>14,}{after:>14,}{after / before if before else 1:>8.2f}")
    lines += ["", *layer_lines(done)]
    lines.append(f"\nloss on {split}: {done.loss_before:.3f} before, {done.loss_after:.3f} after (bits a target)")
    return "\n".join(lines)


def layer_lines(done: Pruned) -> List[str]:
    """What every layer keeps, in lines."""
    lines = []
    for side in SIDES:
        for number in range(done.all_layers[side]):
            if number not in done.layers[side]:
                lines.append(f"{side} {number}: removed")
                continue
            place = done.layers[side].index(number)
            kept = []
            for key, units in done.kept.items():
                if (key.side, key.layer) == (side, place):
                    what = "units" if key.part == FEED_FORWARD else "heads"
                    kept.append(f"{key.part} {len(units)} of {done.units[key]} {what}")
            lines.append(f"{side} {number}: {', '.join(kept)}")
    return lines


if __name__ == "__main__":
    main()
