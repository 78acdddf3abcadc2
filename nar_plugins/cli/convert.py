"""nar-convert: checkpoints of official releases into fairseq checkpoints of this package."""
import argparse
import sys
from pathlib import Path

from nar_plugins.export.convert import convert_mask_predict


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nar-convert", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = kinds.add_parser("mask-predict", help="facebookresearch/Mask-Predict -> cmlm")
    kind.add_argument("checkpoint", type=Path, metavar="CKPT", help="the release's checkpoint")
    kind.add_argument("--dict", type=Path, required=True, help="the release's dict.*.txt (one for both sides)")
    kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives checkpoint.pt and dict.txt")
    kind.add_argument("--heads", type=int, default=0, help="attention heads, if the checkpoint does not say (width / 64)")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    try:
        files = convert_mask_predict(args.checkpoint, args.dict, args.out, args.heads)
    except ValueError as error:
        sys.exit(f"nar-convert: {error}")
    for name, path in files.items():
        print(f"{name}: {path}")
    print(f"next: fairseq-preprocess --srcdict {files['dictionary']} --joined-dictionary ..., then fairseq-generate "
          f"--user-dir \"$(nar-user-dir)\" --task nar_translation --path {files['checkpoint']}")  # fmt: skip


if __name__ == "__main__":
    main()
