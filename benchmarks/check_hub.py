"""Checks one Translator called by many threads, and its memory over many sentences, for one or more models.

    python benchmarks/check_hub.py test.en --data bin --spm spm.model \\
        --system CTC ctc.pt "" --system CMLM cmlm.pt "--iterations 4" --system "AR, beam 5" ar.pt "--beam 5"

Every system runs in a process of its own. First --sentences texts (the lines of the file, again and again) go through
one iterator, and the resident memory is read after 1,000, half of them, and all. Then --threads threads make the same
calls of one to eight texts as one thread did before, in another order, and each answer must be the same: text, score,
tokens, alternatives. Passes must be, too, but for generators that adapt the length of their drafts (blockwise).

The exit status is 1 where an answer differs, or the memory grows by more than --most MB after the first 1,000 texts.
"""

import argparse
import itertools
import multiprocessing
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple

from nar_plugins.cli.command import shield_flags
from nar_plugins.cli.demo import keywords
from nar_plugins.hub import Translator, from_pretrained

FIRST = 1_000  # texts after which the memory must not grow
CALLS = 256
MEGABYTE = 1e6


class Found(NamedTuple):
    memory: Dict[int, float]  # texts -> resident MB after them
    calls: int
    differ: int


def resident() -> float:
    """The resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / MEGABYTE for line in lines if line.startswith("VmRSS:"))


def memory(translator: Translator, texts: List[str], count: int) -> Dict[int, float]:
    """The resident memory after some of ``count`` texts."""
    found, stops = {}, {min(FIRST, count), count // 2, count}
    stream = translator.translate(itertools.islice(itertools.cycle(texts), count), window=256)
    for number, _ in enumerate(stream, 1):
        if number in stops:
            found[number] = resident()
    return found


def threads(translator: Translator, texts: List[str], count: int) -> tuple:
    """The number of calls, and how many had another answer in one of ``count`` threads than in one alone."""
    chance = random.Random(1)
    calls = [chance.choices(texts, k=chance.randint(1, 8)) for _ in range(CALLS)]
    wanted = [translator.translate(call) for call in calls]
    adapts = translator.decoder.generator is not None and translator.decoder.name == "blockwise"
    order = chance.sample(range(CALLS), CALLS)
    with ThreadPoolExecutor(count) as pool:
        found = dict(zip(order, pool.map(lambda number: translator.translate(calls[number]), order)))

    def compared(translations: list) -> list:
        return [each._replace(passes=0) for each in translations] if adapts else translations

    return CALLS, sum(compared(found[number]) != compared(wanted[number]) for number in range(CALLS))


def examine(path: str, data: str, options: dict, texts: List[str], count: int, workers: int) -> Found:
    """Both checks of a model; the memory first, since threads have heaps of their own."""
    translator = from_pretrained(path, None if Path(path).is_dir() else data, **options)
    return Found(memory(translator, texts, count), *threads(translator, texts, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="a text per line")
    parser.add_argument("--system", nargs=3, action="append", required=True, metavar=("NAME", "MODEL", "FLAGS"))
    parser.add_argument("--data", help="folder with the dictionaries of checkpoints")
    parser.add_argument("--spm", help="the SentencePiece model of checkpoints and exported folders")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--most", type=float, default=20, metavar="MB", help="growth that is allowed (default: 20)")
    args = parser.parse_args(shield_flags(sys.argv[1:], parser))
    texts = args.texts.read_text(encoding="utf-8").split("\n")[:-1]
    text_options = {"bpe": "sentencepiece", "sentencepiece_model": args.spm} if args.spm else {}
    failed = False
    for name, path, flags in args.system:
        options = {**text_options, **keywords(flags)}
        with multiprocessing.get_context("spawn").Pool(1) as process:
            found = process.apply(examine, (path, args.data, options, texts, args.sentences, args.threads))
        stops = sorted(found.memory)
        grown = found.memory[stops[-1]] - found.memory[stops[0]]
        sizes = ", ".join(f"{found.memory[stop]:.1f} MB after {stop:,}" for stop in stops)
        print(
            f"{name}: {sizes} texts ({grown:+.1f} MB); {args.threads} threads: {found.differ} of {found.calls} calls "
            "have another answer than one thread's",
            flush=True,
        )
        failed = failed or grown > args.most or found.differ > 0
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
