"""nar-export: a checkpoint for an engine without PyTorch.

    nar-export onnx ctc.pt --data bin --out ctc-onnx
    nar-export onnx cmlm.pt --data bin --out cmlm-onnx --int8

    python ctc-onnx/runtime.py < new.sp.en > new.sp.de        needs onnxruntime and numpy only

A nat is exported whole: encoder, canvas, decoder, the most probable tokens and their log-probabilities. Of a cmlm the
encoder and one pass are exported, of a dag the graph and the tokens of its vertices; runtime.py holds Mask-Predict's
loop and finds the paths. After every export the first sentences of the data are decoded by both and compared; where
they differ, nothing is left.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import List

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.cli.command import new_parser, one_line_errors, only_results, shield_flags
from nar_plugins.export.onnx import Exported, export

MEGABYTE = 1 << 20


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-export", __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("onnx", help="nat, cmlm and dag for ONNX Runtime (pip install 'nar-plugins[onnx]')")
    kind.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a nat, a cmlm or a dag")
    kind.add_argument(
        "--data", required=True, metavar="BIN", help="folder of binarised data: dictionaries, and sentences to check"
    )
    kind.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    kind.add_argument(
        "--int8",
        action="store_true",
        help="quantise the linear layers and the output projection to 8 bits; an output does not depend on its batch",
    )
    kind.add_argument(
        "--flags",
        default="",
        help="flags of fairseq-generate in one string: --length-beam and --fertility of a nat are held by the graph; "
        "--gen-subset (default: test) is what is checked",
    )
    return parser


def main(argv=None) -> None:
    parser = build_parser()
    args = parser.parse_args(shield_flags(sys.argv[1:] if argv is None else argv, parser))
    with one_line_errors("nar-export"), only_results():
        print(report(args.out, export(args.checkpoint, args.data, args.out, shlex.split(args.flags), args.int8)))


def report(out: Path, made: Exported) -> str:
    """What was made, in lines."""
    lines = [f"{out}: {', '.join(f'{name} {size / MEGABYTE:.2f} MB' for name, size in made.files.items())}"]
    for name, quantised in made.quantised.items():
        lines += quantised_lines(name, quantised)
    agreement = made.agreement
    lines.append(
        f"checked: {agreement.same} of {agreement.sentences} outputs are PyTorch's, in batches of several sizes; the "
        f"scores differ by at most {agreement.largest:.1e}, on average by {agreement.mean:.1e}"
    )
    return "\n".join(lines)


def quantised_lines(name: str, quantised) -> List[str]:
    """What of a graph was quantised, and what not."""
    projection = "with" if any("output_projection" in layer for layer in quantised.layers) else "without"
    kept = ", ".join([*sorted(quantised.kept), "embeddings, positions, norms and biases"])
    return [
        f"{name}.onnx: {len(quantised.layers)} linear layers in int8, {projection} the output projection; weights "
        f"{quantised.before / MEGABYTE:.2f} MB -> {quantised.after / MEGABYTE:.2f} MB; in float32: {kept}"
    ]


if __name__ == "__main__":
    main()
