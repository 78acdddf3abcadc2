"""Train a SentencePiece model and encode text with it, for the recipes in examples/.

python scripts/spm.py train --model PREFIX --size N FILE [FILE ...]
python scripts/spm.py encode --model PREFIX < raw > pieces
python scripts/spm.py decode --model PREFIX < pieces > raw
"""

import argparse
import sys
from pathlib import Path
from typing import List

import sentencepiece
from text import lines_of, message_of, read


def train(files: List[str], model: Path, size: int) -> None:
    """Write MODEL.model and MODEL.vocab.

    Raises:
        ValueError: a file has no text or is not UTF-8, there is none, or there is no folder for the model.
    """
    if not files:
        raise ValueError("train needs a file of raw text")
    if not model.parent.is_dir():
        raise ValueError(f"--model {model}: no folder '{model.parent}'")
    if not any(line.strip() for file in files for line in read(Path(file))):
        raise ValueError(f"{', '.join(files)}: no text to train on")
    sentencepiece.SentencePieceTrainer.train(
        input=files,
        model_prefix=str(model),
        vocab_size=size,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,  # with more threads the model is not reproducible
        minloglevel=2,
    )


def print_lines(job: str, model: Path) -> None:
    """Encode or decode the lines of standard input."""
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # only \n ends a line, whatever the machine's locale
    for line in lines_of(sys.stdin, "standard input"):
        print(" ".join(processor.encode(line, out_type=str)) if job == "encode" else processor.decode(line.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["train", "encode", "decode"])
    parser.add_argument("--model", type=Path, required=True, metavar="PREFIX", help="PREFIX.model is written or read")
    parser.add_argument("--size", type=int, default=4000, help="number of pieces (train)")
    parser.add_argument("files", nargs="*", help="raw text, one sentence a line (train)")
    args = parser.parse_intermixed_args()
    try:
        if args.job == "train":
            train(args.files, args.model, args.size)
        else:
            print_lines(args.job, args.model)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: sentencepiece's
        sys.exit(f"spm.py: {message_of(error)}")


if __name__ == "__main__":
    main()
