"""Steps of text preparation for the recipes in examples/, each a filter of lines, or of lines and their translations.

python scripts/text.py tokenise --language de [--normalise] [--split-hyphens] [--lower] < raw > tokens
python scripts/text.py learn-bpe --merges N FILE [FILE ...] > codes
python scripts/text.py bpe --codes CODES < tokens > sub-words
python scripts/text.py romanian [--strip] < raw > normalised
python scripts/text.py lower < text > lower-cased
python scripts/text.py clean --judge A.tok B.tok --longest N --ratio R IN OUT [IN OUT ...]

tokenise: as Moses does (sacremoses). bpe: byte-pair encoding (subword-nmt; Sennrich et al. 2016).
romanian: commas, not cedillas, below s and t; --strip removes the diacritics, as
Sennrich et al. did for WMT16. clean: every IN without the lines whose pair in A.tok and B.tok has an empty side, a
side of more than N tokens, or one with more than R times the tokens of the other, as Moses' clean-corpus-n does.
"""

import argparse
import sys
import unicodedata
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Tuple

COMMA_BELOW = str.maketrans("\u015e\u015f\u0162\u0163", "\u0218\u0219\u021a\u021b")
STRIPPED = set("\u0306\u0302\u0326\u0327")  # breve, circumflex, comma and cedilla below: all that Romanian has


def romanian(line: str, strip: bool = False) -> str:
    """One form of the letters that Unicode has twice; or none of their marks."""
    if not strip:
        return unicodedata.normalize("NFC", line).translate(COMMA_BELOW)
    return "".join(c for c in unicodedata.normalize("NFD", line) if c not in STRIPPED)


class Moses:
    """A line's tokens, joined by blanks; warns of a language whose abbreviations Moses does not have.

    Args:
        language: code that chooses the abbreviations and apostrophe rules.
        normalise: first replace typographic punctuation and remove control characters.
        split_hyphens: split "a-b" into "a @-@ b".
        lower: lower-case the tokens.
    """

    def __init__(self, language: str, normalise: bool, split_hyphens: bool, lower: bool):
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
        from sacremoses.corpus import NonbreakingPrefixes

        known = {*NonbreakingPrefixes().available_langs.values(), "ja", "ko"}  # of the last two it has the letters only
        if language not in known:
            warn(f"--language {language}: Moses has no rules for it, and English's are used (it has {joined(known)})")
        self.tokenizer = MosesTokenizer(language)
        self.normalizer = MosesPunctNormalizer(language, post_remove_control_chars=True) if normalise else None
        self.split_hyphens, self.lower = split_hyphens, lower

    def __call__(self, line: str) -> str:
        if self.normalizer is not None:
            line = self.normalizer.normalize(line)
        line = self.tokenizer.tokenize(line, aggressive_dash_splits=self.split_hyphens, return_str=True)
        return line.lower() if self.lower else line


def is_clean(first: str, second: str, longest: int, ratio: float) -> bool:
    """Whether a tokenised pair stays."""
    a, b = len(first.split()), len(second.split())
    return 0 < min(a, b) and max(a, b) <= longest and max(a, b) <= ratio * min(a, b)


def clean(judges: List[Path], files: List[Tuple[Path, Path]], longest: int, ratio: float) -> str:
    """Write the clean lines of every first file to the second; the line to print.

    Raises:
        ValueError: the files have different numbers of lines, or no pair stays.
    """
    counts = {path: count(path) for path in dict.fromkeys([*judges, *(source for source, _ in files)])}
    if len(set(counts.values())) > 1:
        raise ValueError(", ".join(f"{path} has {n} lines" for path, n in counts.items()) + ": they are not parallel")
    keep = [is_clean(*pair, longest, ratio) for pair in zip(*map(read, judges))]
    if not any(keep):
        first, second = judges
        raise ValueError(
            f"{first}, {second}: of {len(keep)} pairs none is kept: are these the right files, --longest and --ratio?"
        )
    for source, out in files:
        part = out.with_name(f"{out.name}.part")
        with open(part, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line, stays in zip(read(source), keep) if stays)
        part.replace(out)
    return f"{files[0][1]}: {sum(keep)} of {len(keep)} pairs are kept"


def lines_of(stream: Iterable[str], name: str) -> Iterator[str]:
    """The lines of a stream that splits at \\n only, without \\n, \\r\\n and a byte order mark at the start.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        for number, line in enumerate(stream):
            line = line[line.startswith("\ufeff") and not number :]
            line = line[:-1] if line.endswith("\n") else line
            yield line[:-1] if line.endswith("\r") else line
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: convert it first, for example with iconv") from error


def read(path: Path) -> Iterator[str]:
    """The lines of a file."""
    with open(path, encoding="utf-8", newline="\n") as stream:
        yield from lines_of(stream, str(path))


def count(path: Path) -> int:
    return sum(1 for _ in read(path))


def learn(files: List[Path], merges: int) -> None:
    """Print the byte-pair codes of files.

    Raises:
        ValueError: there is nothing to merge.
    """
    from subword_nmt.learn_bpe import learn_bpe

    if merges < 1:
        raise ValueError(f"--merges {merges}: at least 1")
    lines, head = chain.from_iterable(map(read, files)), []  # a file may be a pipe, which is read once
    for line in lines:
        head.append(line)
        if any(len(word) > 1 for word in line.split(" ")):
            break
    else:
        raise ValueError(f"{', '.join(map(str, files))}: no word of two characters, so that there is nothing to merge")
    learn_bpe(chain(head, lines), sys.stdout, merges)


def check_codes(path: Path) -> None:
    """Raise unless a file has byte-pair codes: subword-nmt would end the process with two lines of its own."""
    header, *codes = [*read(path)] or [""]
    if not header.startswith("#version:"):  # of the first version
        codes.insert(0, header)
    for number, code in enumerate(codes or [""], 1 + header.startswith("#version:")):
        if len(code.strip(" ").split(" ")) != 2:
            raise ValueError(f"{path}, line {number}: no two sub-words: --codes takes what learn-bpe prints")


def message_of(error: Exception) -> str:
    """An error without the number that the system gives it."""
    named = isinstance(error, OSError) and error.filename is not None
    return f"{error.filename}: {error.strerror}" if named else str(error)


def joined(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def warn(message: str) -> None:
    print(f"text.py: warning: {message}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    moses = jobs.add_parser("tokenise")
    moses.add_argument("--language", required=True)
    moses.add_argument("--normalise", action="store_true")
    moses.add_argument("--split-hyphens", action="store_true")
    moses.add_argument("--lower", action="store_true")
    learn = jobs.add_parser("learn-bpe")
    learn.add_argument("--merges", type=int, required=True)
    learn.add_argument("files", type=Path, nargs="+")
    jobs.add_parser("bpe").add_argument("--codes", type=Path, required=True)
    jobs.add_parser("lower")
    jobs.add_parser("romanian").add_argument("--strip", action="store_true")
    pairs = jobs.add_parser("clean")
    pairs.add_argument("--judge", type=Path, nargs=2, required=True)
    pairs.add_argument("--longest", type=int, required=True)
    pairs.add_argument("--ratio", type=float, required=True)
    pairs.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return parser


def line_function(args) -> Callable[[str], str]:
    """What the job does with a line."""
    if args.job == "romanian":
        return partial(romanian, strip=args.strip)
    if args.job == "tokenise":
        return Moses(args.language, args.normalise, args.split_hyphens, args.lower)
    if args.job == "bpe":
        from subword_nmt.apply_bpe import BPE

        check_codes(args.codes)
        with open(args.codes, encoding="utf-8") as codes:
            return BPE(codes).process_line
    return str.lower


def print_lines(args) -> None:
    """The jobs that print lines."""
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # only \n ends a line, whatever the machine's locale
    if args.job == "learn-bpe":
        learn(args.files, args.merges)
        return
    function = line_function(args)
    for line in lines_of(sys.stdin, "standard input"):
        print(function(line))


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    try:
        if args.job == "clean":
            if len(args.files) % 2:
                parser.error("clean takes pairs of files, IN OUT")
            print(clean(args.judge, list(zip(args.files[::2], args.files[1::2])), args.longest, args.ratio))
        else:
            print_lines(args)
    except ImportError as error:
        sys.exit(f"text.py: no {error.name}: pip install -e '.[recipes]', or take PIECES=spm")
    except (OSError, ValueError) as error:
        sys.exit(f"text.py: {message_of(error)}")


if __name__ == "__main__":
    main()
