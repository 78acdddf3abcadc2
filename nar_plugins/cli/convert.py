"""nar-convert: convert checkpoints of official releases or other trainers, and BERT's vocabulary, for this package."""

import argparse
from pathlib import Path

from nar_plugins.checkpoint_io.convert_bang import convert_bang, convert_bert_vocabulary
from nar_plugins.checkpoint_io.convert_fairseq import convert_fairseq
from nar_plugins.checkpoint_io.convert_mask_predict import convert_mask_predict
from nar_plugins.cli.command import one_line_errors

# the locations of the files, from the pages of the releases
MASK_PREDICT = """Convert a checkpoint of Mask-Predict's release to a cmlm. Its page links archives with dictionaries:

  https://github.com/facebookresearch/Mask-Predict
  http://dl.fbaipublicfiles.com/fairseq/models/maskPredict_en_de.tar.gz (de_en, en_ro, ro_en, en_zh, zh_en)
"""
BANG = """Convert a checkpoint of BANG's release to a bang. Its page links the pre-trained one:

  https://github.com/microsoft/BANG
  https://msraprophetnet.blob.core.windows.net/bang/checkpoint_base_9gram_ck35.pt

The vocabulary is that of BERT base uncased, vocab.txt; nar-convert bert-vocab --official makes the dictionary from it.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nar-convert", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kind = add_release(kinds, "mask-predict", "facebookresearch/Mask-Predict -> cmlm", MASK_PREDICT)
    kind.add_argument("--dict", type=Path, required=True, help="the release's dict.*.txt (one for both sides)")
    kind.add_argument(
        "--heads",
        type=int,
        default=0,
        help="attention heads (default: those in the checkpoint, or else its width / 64)",
    )
    kind = add_release(kinds, "bang", "microsoft/BANG, or microsoft/ProphetNet of two streams -> bang", BANG)
    kind.add_argument("--dict", type=Path, required=True, help="the dictionary that nar-convert bert-vocab makes")
    kind.add_argument(
        "--official-nar",
        action="store_true",
        help="the masks of NAR decoding do not see the start token; for the release's checkpoints fine-tuned for NAR",
    )
    kind = kinds.add_parser("bert-vocab", help="BERT's vocab.txt -> a dictionary for fairseq-preprocess --srcdict")
    kind.add_argument("vocabulary", type=Path, metavar="VOCAB", help="vocab.txt, one symbol per line")
    kind.add_argument("--out", type=Path, required=True, metavar="FILE", help="the dictionary, such as dict.txt")
    kind.add_argument(
        "--official", action="store_true", help="name index 2 [X_SEP], as BANG's and ProphetNet's releases do"
    )
    kind = kinds.add_parser(
        "fairseq", help="any fairseq checkpoint -> a copy without objects that could run code when loaded"
    )
    kind.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="a checkpoint that was refused because of such objects"
    )
    kind.add_argument("--out", type=Path, required=True, metavar="FILE", help="the copy, such as model.pt")
    return parser


def add_release(kinds, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """The sub-parser for a release's checkpoints, with the options that all releases share."""
    kind = kinds.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind.add_argument("checkpoint", type=Path, metavar="CKPT", help="the release's checkpoint")
    kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoint.pt and dict.txt")
    return kind


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    with one_line_errors("nar-convert"):
        print(convert(args))


def convert(args) -> str:
    """Run the conversion; returns the files written, and the next command."""
    if args.kind == "bert-vocab":
        count = convert_bert_vocabulary(args.vocabulary, args.out, args.official)
        return (
            f"dictionary: {args.out} ({count:,} symbols)\n"
            f"next: nar-wordpiece encode --vocab {args.out} < raw > pieces, then fairseq-preprocess --user-dir "
            f'"$(nar-user-dir)" --task nar_translation --srcdict {args.out} --joined-dictionary ...'
        )
    if args.kind == "fairseq":
        left_out = convert_fairseq(args.checkpoint, args.out)
        return f"checkpoint: {args.out}\nleft out: {'; '.join(left_out) or 'nothing'}"
    if args.kind == "bang":
        files = convert_bang(args.checkpoint, args.dict, args.out, not args.official_nar)
    else:
        files = convert_mask_predict(args.checkpoint, args.dict, args.out, args.heads)
    return (
        f"dictionary: {files['dictionary']}\ncheckpoint: {files['checkpoint']}\n"
        f'next: fairseq-preprocess --user-dir "$(nar-user-dir)" --task nar_translation --srcdict {files["dictionary"]} '
        f'--joined-dictionary ..., then fairseq-generate --user-dir "$(nar-user-dir)" --task nar_translation '
        f"--path {files['checkpoint']}"
    )


if __name__ == "__main__":
    main()
