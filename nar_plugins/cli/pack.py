"""nar-pack: make a folder of a checkpoint that translates by itself, without the data, and without running code.

Example:

    nar-pack ckpt/checkpoint_best.pt --data bin --spm spm.model --out model-de-en --bleu "27.3" \\
        --command "fairseq-generate bin ... | nar-score - test.de"

The folder has the weights in safetensors, the model's arguments as JSON, the dictionaries, the sub-word model and a
card. nar_plugins.hub.from_pretrained("model-de-en") reads it. Sub-words and tokeniser are given as for
fairseq-interactive, such as --bpe subword_nmt --bpe-codes codes --tokenizer moses.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

import nar_plugins  # noqa: F401  (registers the task before the flags are parsed)
from nar_plugins.cli.command import new_parser, one_line_errors, only_results
from nar_plugins.hub.folder import CARD
from nar_plugins.hub.options import ENCODERS, LANGUAGES, encoder_options, parse
from nar_plugins.hub.pack import pack
from nar_plugins.models.flags import flag


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-pack", __doc__)
    parser.allow_abbrev = False
    parser.usage = "nar-pack CKPT --data BIN [--spm MODEL] --out FOLDER [--bleu TEXT] [--command TEXT] [flags]"
    parser.epilog = (
        "Further flags are fairseq-interactive's: --bpe, --tokenizer and theirs, --source-lang, --target-lang."
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT", help="a checkpoint of any model here, or of fairseq's transformer"
    )
    parser.add_argument("--data", required=True, metavar="BIN", help="folder with its dictionaries, dict.LANGUAGE.txt")
    parser.add_argument("--spm", metavar="MODEL", help="short for --bpe sentencepiece --sentencepiece-model MODEL")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the new folder")
    parser.add_argument("--bleu", metavar="TEXT", help="for the card: the model's BLEU, as nar-score prints it")
    parser.add_argument("--command", metavar="TEXT", help="for the card: the command that measured it")
    return parser


def text_options(args, others: List[str]) -> Dict[str, Any]:
    """The options of sub-words and languages among the flags of ``fairseq-interactive``, as keywords of the hub.

    Raises:
        ValueError: another flag is given.
    """
    if args.spm is not None:
        others = [*others, "--bpe", "sentencepiece", "--sentencepiece-model", args.spm]
    needed = [args.data, "--path", args.checkpoint]
    given, defaults = parse([*needed, *others])[0], vars(parse(needed)[0])
    chosen: Dict[str, Any] = {name: getattr(given, name) for name in (*ENCODERS, *LANGUAGES)}
    for kind in ENCODERS:
        if chosen[kind] is not None:
            chosen.update({name: getattr(given, name) for name in encoder_options(kind, chosen[kind])})
    for name, value in vars(given).items():
        if name not in chosen and value != defaults.get(name):
            raise ValueError(f"{flag(name)} is no option of nar-pack: give it to from_pretrained")
    return {name: value for name, value in chosen.items() if value is not None and value is not False}


def main(argv=None) -> None:
    args, others = build_parser().parse_known_args(sys.argv[1:] if argv is None else argv)
    with one_line_errors("nar-pack"), only_results():
        pack(args.checkpoint, args.data, args.out, text_options(args, others), args.bleu, args.command)
        size = sum(path.stat().st_size for path in args.out.iterdir())
        print(f"{args.out}: {size / 1e6:.1f} MB; see {args.out / CARD}")


if __name__ == "__main__":
    main()
