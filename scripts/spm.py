"""Train a SentencePiece model and encode text with it, for the recipes in examples/.

python scripts/spm.py train --model PREFIX --size N FILE [FILE ...]
python scripts/spm.py encode --model PREFIX < raw > pieces
python scripts/spm.py decode --model PREFIX < pieces > raw
"""

import argparse
import sys

import sentencepiece


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["train", "encode", "decode"])
    parser.add_argument("--model", required=True, metavar="PREFIX", help="PREFIX.model is written or read")
    parser.add_argument("--size", type=int, default=4000, help="number of pieces (train)")
    parser.add_argument("files", nargs="*", help="raw text, one sentence a line (train)")
    args = parser.parse_intermixed_args()

    if args.job == "train":
        sentencepiece.SentencePieceTrainer.train(
            input=",".join(args.files),
            model_prefix=args.model,
            vocab_size=args.size,
            character_coverage=1.0,
            hard_vocab_limit=False,
            num_threads=1,  # with more threads the model is not reproducible
            minloglevel=2,
        )
        return
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{args.model}.model")
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # only \n ends a line, whatever the machine's locale
    for line in sys.stdin:
        line = line.rstrip("\n")
        if args.job == "encode":
            print(" ".join(processor.encode(line, out_type=str)))
        else:
            print(processor.decode(line.split()))


if __name__ == "__main__":
    main()
