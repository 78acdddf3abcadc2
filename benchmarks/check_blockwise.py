"""Checks that blockwise decoding gives the tokens and scores of fairseq's greedy search, through the real commands.

    python benchmarks/check_blockwise.py work/multi30k/bin --ar work/multi30k/ar/checkpoint_last.pt --cpu \\
        --system "frozen heads" work/multi30k/kd-frozen/checkpoint_last.pt "" \\
        --system jacobi work/multi30k/ar/checkpoint_last.pt "--drafter jacobi"

Every hypothesis is compared with that of ``fairseq-generate --generator beam --beam 1`` and the AR checkpoint: the text
byte for byte, the scores to 1e-4. Where the text differs, the log-probabilities of the two tokens at the first
difference are compared. The exit status is 1 where they are further apart than rounding explains.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Dict, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SCORES, TIE = 1e-4, 1e-4


class Line(NamedTuple):
    """A hypothesis: its text, its score, and its tokens' log-probabilities."""

    text: str
    score: float
    positional: list


def generate(data: str, checkpoint: str, flags: list) -> tuple:
    """The hypotheses of fairseq-generate by number, and the lines of its log with blockwise statistics."""
    command = [
        str(Path(sys.executable).parent / "fairseq-generate"),
        data,
        "--user-dir",
        str(ROOT / "nar_plugins"),
        "--task",
        "nar_translation",
        "--path",
        checkpoint,
        *flags,
    ]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-3000:]}")
    texts: Dict[int, tuple] = {}
    positional: Dict[int, list] = {}
    for line in done.stdout.splitlines():
        if re.match(r"[HP]-\d+\t", line):
            name, *fields = line.split("\t")
            if name[0] == "H":
                texts[int(name[2:])] = (fields[1], float(fields[0]))
            else:
                positional[int(name[2:])] = [float(number) for number in fields[0].split()]
    statistics = [line.split("| ")[-1] for line in done.stdout.splitlines() if "mean accepted block" in line]
    return {n: Line(*pair, positional[n]) for n, pair in texts.items()}, statistics


def margin(first: Line, second: Line) -> float:
    """The difference of the two runs' log-probabilities at the first token that differs."""
    tokens, others = (line.text.split() + ["</s>"] for line in (first, second))
    step = next(i for i, (a, b) in enumerate(zip(tokens, others)) if a != b)
    return abs(first.positional[step] - second.positional[step])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="binarised data")
    parser.add_argument("--ar", required=True, help="the AR checkpoint")
    parser.add_argument("--system", nargs=3, action="append", required=True, metavar=("NAME", "CKPT", "FLAGS"))
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--batch-size", default="32")
    args = parser.parse_args()
    shared = ["--batch-size", args.batch_size, "--required-batch-size-multiple", "1", *(["--cpu"] if args.cpu else [])]

    wanted, _ = generate(args.data, args.ar, [*shared, "--generator", "beam", "--beam", "1"])
    failed = False
    for name, checkpoint, flags in args.system:
        outputs, statistics = generate(
            args.data, checkpoint, [*shared, "--generator", "blockwise", "--beam", "1", *shlex.split(flags)]
        )
        assert outputs.keys() == wanted.keys(), f"{name}: {len(outputs)} sentences, greedy search has {len(wanted)}"
        equal = [n for n in wanted if outputs[n].text == wanted[n].text]
        score = max((abs(outputs[n].score - wanted[n].score) for n in equal), default=0.0)
        margins = sorted((margin(outputs[n], wanted[n]) for n in wanted.keys() - set(equal)), reverse=True)
        print(
            f"{name}: {len(wanted)} sentences, {len(equal)} equal, scores differ by at most {score:.1e}; "
            f"{''.join(statistics)}",
            flush=True,
        )
        if margins:
            print(f"  margins of the {len(margins)} that differ: {' '.join(f'{apart:.1e}' for apart in margins)}")
        failed = failed or score > SCORES or any(apart > TIE for apart in margins)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
