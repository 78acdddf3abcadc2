"""Where an exported cmlm and PyTorch part: the first choice in which two decodings of a sentence differ, and how close
it was.

    nar-export onnx cmlm.pt --data bin --out cmlm-onnx
    python benchmarks/first_difference.py cmlm.pt cmlm-onnx --data bin --spm spm.model --source test.en \\
        --flags "--iterations 4"

Both decode the sentences in the same batches, by length (or the batches with the lines --lines, numbered from 0 as
check_shipping.py does). Of every sentence with two outputs is printed which of these comes first, in the order of the
decoding: the candidate lengths, the positions that are masked again, the token at a masked position, the candidate that
wins. A choice has two log-probabilities (of a token, a position's token, a score) in either program; printed is how far
apart they are, and the largest difference of two log-probabilities that should be equal, among all before that choice.
Where the first is at most twice the second, the choice is a tie that rounding decides: sums in another order.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence

import numpy as np
import torch

from nar_plugins.cli.command import shield_flags
from nar_plugins.cli.demo import keywords
from nar_plugins.export.runtime import OnnxTranslator, padded
from nar_plugins.hub import from_pretrained


class Canvas(NamedTuple):
    """A candidate of one sentence after a pass."""

    tokens: List[int]
    lprobs: List[float]
    masked: List[bool]  # in this pass


Step = Dict[int, Canvas]  # length -> candidate; of one pass


class Decoded(NamedTuple):
    """How one sentence was decoded."""

    steps: List[Step]
    output: List[int]  # of the best hypothesis
    score: float


class Difference(NamedTuple):
    """The first choice that differs.

    Attributes:
        choice: in words. margin: how far apart the two values are that were compared. rounding: the largest difference
            of two log-probabilities up to there that should be equal.
    """

    choice: str
    margin: float
    rounding: float


class Recorded(OnnxTranslator):
    """An exported model that keeps what it chose in its last batch.

    Attributes:
        length_lprobs: (B, classes). steps: of each pass, tokens, lprobs, masked (B, N, T).
    """

    def mask_predict(self, source: np.ndarray) -> tuple:
        self.steps, self.within = [], False
        return super().mask_predict(source)

    def run(self, name: str, inputs: Dict[str, np.ndarray]) -> List[np.ndarray]:
        outputs = super().run(name, inputs)
        if name == "encoder":
            self.length_lprobs = outputs[0]
        return outputs

    def fill(self, state, picked, chosen, source, memory) -> None:
        if self.within:  # the sentences that are left, of a pass
            super().fill(state, picked, chosen, source, memory)
            return
        self.within = True
        super().fill(state, picked, chosen, source, memory)
        self.within = False
        masked = np.zeros(state[0].shape, dtype=bool)
        np.put_along_axis(masked, picked, chosen, -1)
        self.steps.append((state[0].copy(), state[1].copy(), masked))


def steps_of(passes: Sequence, sentence: int, pad: int) -> List[Step]:
    """The passes of one sentence of a batch; of each pass tokens, lprobs, masked (B, N, T)."""
    found = []
    for tokens, lprobs, masked in passes:
        rows = [part[sentence].tolist() for part in (tokens, lprobs, masked)]
        sizes = (tokens[sentence] != pad).sum(1).tolist()
        found.append({size: Canvas(*(part[:size] for part in parts)) for size, *parts in zip(sizes, *rows)})
    return found


def first_difference(theirs: Decoded, ours: Decoded, length_lprobs: Sequence[float]) -> Difference:
    """The first choice in which two decodings of a sentence differ.

    Args:
        theirs: PyTorch's. ours: the exported model's. length_lprobs: its own, of all lengths.
    """
    rounding, before = 0.0, {}
    sizes = sorted(theirs.steps[0])
    alone = sorted(set(sizes) ^ set(ours.steps[0]))
    if alone:
        return Difference(f"lengths: only one has {alone}", spread([length_lprobs[size] for size in alone]), rounding)
    for number, (their, our) in enumerate(zip(theirs.steps, ours.steps), 1):
        for size in sizes:
            alone = [i for i in range(size) if their[size].masked[i] != our[size].masked[i]]
            if alone:
                where = f"pass {number}, length {size}: only one masks the positions {alone}"
                return Difference(where, spread([before[size].lprobs[i] for i in alone]), rounding)
        pairs = [
            (size, i, (their[size].tokens[i], our[size].tokens[i]), (their[size].lprobs[i], our[size].lprobs[i]))
            for size in sizes
            for i in range(size)
        ]
        rounding = max(rounding, *(spread(lprobs) for *_, (one, other), lprobs in pairs if one == other))
        for size, i, (one, other), lprobs in pairs:
            if one != other:
                where = f"pass {number}, length {size}, position {i}: tokens {one} and {other}"
                return Difference(where, spread(lprobs), rounding)
        before = their
    return Difference("the candidate that wins", spread([theirs.score, ours.score]), rounding)


def spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def batches(sentences: List[torch.Tensor], size: int) -> List[List[int]]:
    """The batches in which the hub and runtime.py decode sentences: their numbers, by length."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="what nar-export onnx made of it, in float32")
    parser.add_argument("--data", required=True, help="folder with the dictionaries")
    parser.add_argument("--spm", required=True, help="the SentencePiece model")
    parser.add_argument("--source", type=Path, required=True, help="a text per line")
    parser.add_argument("--flags", default="", help="of the decoding, that nar-export leaves open")
    parser.add_argument("--lines", type=int, nargs="+", help="decode the batches with these lines only, from 0")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args(shield_flags(sys.argv[1:], parser))
    options = keywords(args.flags)
    words = {"bpe": "sentencepiece", "sentencepiece_model": args.spm}
    translator = from_pretrained(args.checkpoint, args.data, cpu=True, **words, **options)
    exported = Recorded(args.folder, threads=torch.get_num_threads(), **options)
    if exported.config["kind"] != "iterative":
        sys.exit(f"first_difference: {args.folder} is no cmlm")
    texts = args.source.read_text(encoding="utf-8").split("\n")[:-1]
    sentences = [translator.task.as_read(translator.encode(text)) for text in texts]
    passes: List[tuple] = []
    translator.decoder.generator.observer = passes.append
    compared = differ = 0
    for batch in batches(sentences, args.batch_size):
        if args.lines and not set(args.lines) & set(batch):
            continue
        passes.clear()
        theirs = [nbest[0] for nbest in translator.decode([sentences[i] for i in batch], args.batch_size)]
        ours = [nbest[0] for nbest in exported.decode(padded([sentences[i].tolist() for i in batch], exported.pad))]
        told = [
            [part.view(len(batch), -1, part.size(-1)).numpy() for part in (each.tokens, each.lprobs, each.predicted)]
            for each in passes
        ]
        for position, number in enumerate(batch):
            one = Decoded(
                steps_of(told, position, exported.pad),
                theirs[position]["tokens"].tolist(),
                float(theirs[position]["score"]),
            )
            other = Decoded(
                steps_of(exported.steps, position, exported.pad), ours[position]["tokens"], ours[position]["score"]
            )
            compared += 1
            if one.output == other.output:
                continue
            differ += 1
            found = first_difference(one, other, exported.length_lprobs[position].tolist())
            print(f"line {number}: {found.choice}; {found.margin:.2g} apart, rounding so far {found.rounding:.2g}")
            for name, decoded in (("PyTorch", one), ("ONNX", other)):
                print(f"  {name}, {decoded.score:.6f}: {exported.string(decoded.output)}")
    print(f"{differ} of {compared} outputs differ")


if __name__ == "__main__":
    main()
