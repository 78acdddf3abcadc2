"""Run an exported model with ONNX Runtime and NumPy; neither PyTorch nor fairseq is imported.

``nar-export onnx`` puts a copy of this file into every folder it makes, so that the folder needs nothing else:

    python FOLDER/runtime.py < sources > translations     one line per sentence, sub-words separated by blanks

or, in Python, ``OnnxTranslator(FOLDER).translate(lines)``. The graphs do what ``nar_plugins/export/graphs.py`` says.
What is here is around them: dictionaries, batches, CTC's collapse, the choice of lengths, and Mask-Predict's loop. It
is NumPy's twin of ``nar_plugins/generators/canvas``; every export is checked against that.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

FORMAT = 1  # of config.json
CONFIG = "config.json"
SHORTEST = 2  # tokens of a predicted length, </s> counted
SCHEDULES = ("linear", "cosine", "confidence")
OPTIONS = ("max_len_a", "max_len_b", "lenpen", "unnormalized")  # that every model has, besides those of its kind
ITERATIVE = ("iterations", "length_beam", "schedule", "confidence_threshold")


class OnnxTranslator:
    """An exported folder, loaded.

    Args:
        folder: what ``nar-export onnx`` made.
        threads: of ONNX Runtime; None: as many as there are cores.
        options: instead of the options of the export (``config["decoding"]``): iterations, length_beam, schedule and
            confidence_threshold of iterative models, max_len_a, max_len_b, lenpen, unnormalized.

    Attributes:
        config: the content of the folder's config.json.
        source, target: the symbols of both dictionaries, by index.
        weight_bytes: the size of the graphs' files, which are weights almost entirely.

    Raises:
        ValueError: ONNX Runtime is not installed, a file is missing, foreign or of another version, or an option is not
            one of these.
    """

    def __init__(self, folder, threads: Optional[int] = None, **options):
        self.folder = Path(folder)
        self.config = read_config(self.folder)
        self.options = checked_options(self.config, options)
        self.symbols = self.config["symbols"]
        self.pad, self.eos = self.symbols["pad"], self.symbols["eos"]
        self.source, self.target = (read_symbols(self.folder, self.config, side) for side in ("source", "target"))
        unreadable = {self.source[self.pad], self.target[self.symbols["mask"]]}
        self.index = index_of(self.source, self.config, unreadable)
        self.sessions = {name: session(self.folder / f"{name}.onnx", threads) for name in self.config["graphs"]}
        check_products(self.folder, self.config, threads)
        self.weight_bytes = sum((self.folder / f"{name}.onnx").stat().st_size for name in self.sessions)

    # -- text ----------------------------------------------------------------------------------------------------------

    def translate(self, lines: Sequence[str], batch_size: int = 32) -> List[str]:
        """The translations of lines of sub-words, separated by blanks, in order.

        Raises:
            ValueError: a line has more tokens than the model has positions.
        """
        encoded = [self.encode(line) for line in lines]
        limit = self.config["max_source_positions"]
        for number, tokens in enumerate(encoded, 1):
            if len(tokens) > limit:
                raise ValueError(f"line {number} has {len(tokens)} tokens, and the model {limit} positions: cut it")
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        translations = [""] * len(encoded)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            for i, hypotheses in zip(chosen, self.decode(padded([encoded[i] for i in chosen], self.pad))):
                translations[i] = self.string(hypotheses[0]["tokens"])
        return translations

    def encode(self, line: str) -> List[int]:
        """The indices of a line's sub-words, and ``</s>``; unknown ones, padding and the mask are ``<unk>``."""
        return [*(self.index.get(symbol, self.symbols["unk"]) for symbol in line.split()), self.eos]

    def string(self, tokens: Sequence[int]) -> str:
        """The sub-words of an output, separated by blanks, without ``</s>``."""
        return " ".join(self.target[token] for token in tokens if token not in (self.eos, self.pad))

    # -- batches -------------------------------------------------------------------------------------------------------

    def generate(self, sample: Dict) -> List[List[Dict]]:
        """``decode`` of fairseq's batch, whose tensors may be PyTorch's or NumPy's."""
        return self.decode(np.asarray(sample["net_input"]["src_tokens"]))

    def decode(self, source: np.ndarray) -> List[List[Dict]]:
        """The hypotheses of every sentence, best first.

        Args:
            source: (B, S) int64, padded on the right.

        Returns:
            dictionaries of ``tokens`` (list of int), ``positional_scores`` (list of float, log-probabilities),
            ``score`` (their mean, or what lenpen and unnormalized say) and ``steps`` (passes of the decoder). A source
            without tokens has one hypothesis, ``</s>``, of no pass.

        Raises:
            ValueError: the output is NaN.
        """
        source = np.ascontiguousarray(source, dtype=np.int64)
        if self.config["kind"] == "iterative":
            tokens, lprobs, lengths, keep, steps = self.mask_predict(source)
        else:
            tokens, lprobs, lengths, keep = self.run("model", self.one_pass_inputs(source))
            steps = np.ones_like(lengths)
        if np.isnan(lprobs).any():
            raise ValueError("the model's output is NaN: its weights are NaN themselves (a training that diverged)")
        totals, positions = lprobs.sum(2, dtype=np.float32), lengths
        if self.config["kind"] == "ctc":
            tokens, lprobs, lengths = self.collapsed(tokens, lprobs, lengths)
        scores = totals if self.options["unnormalized"] else totals / positions ** self.options["lenpen"]
        empty = (source != self.pad).sum(1) <= 1
        return [
            [hypothesis([self.eos], [0.0], 0.0, 0)] if empty[b] else self.ranked(*part)
            for b, part in enumerate(zip(tokens, lprobs, lengths, scores, keep, steps))
        ]

    def run(self, name: str, inputs: Dict[str, np.ndarray]) -> List[np.ndarray]:
        """The outputs of a graph."""
        return self.sessions[name].run(None, inputs)

    def one_pass_inputs(self, source: np.ndarray) -> Dict[str, np.ndarray]:
        """What the graph of a model of one pass reads."""
        inputs = {"src_tokens": source}
        if self.config["kind"] != "ctc":
            inputs["longest"] = self.longest(source)
        return inputs

    def longest(self, source: np.ndarray) -> np.ndarray:
        """The longest outputs that max_len_a and max_len_b allow, ``</s>`` counted: (B,) int64."""
        real = (source != self.pad).sum(1).astype(np.float32)  # PyTorch's type of an integer times a float
        scaled = np.float32(self.options["max_len_a"]) * real + np.float32(self.options["max_len_b"])
        return scaled.astype(np.int64) + 1

    def ranked(self, tokens, lprobs, lengths, scores, keep, steps) -> List[Dict]:
        """The distinct hypotheses of a sentence, best first: tokens, lprobs (N, T), the others (N,)."""
        found, texts = [], set()
        for n in np.argsort(np.where(keep, -scores, np.inf), kind="stable"):
            kept = tokens[n, : lengths[n]].tolist()
            text = tuple(token for token in kept if token != self.eos)
            if keep[n] and text not in texts:
                found.append(hypothesis(kept, lprobs[n, : lengths[n]].tolist(), float(scores[n]), int(steps[n])))
            texts.add(text)
        return found

    def collapsed(self, path: np.ndarray, lprobs: np.ndarray, lengths: np.ndarray) -> Tuple[np.ndarray, ...]:
        """CTC's outputs of paths: repetitions count once, blanks not at all; an output without tokens is ``</s>``.

        Args:
            path: (B, N, T). lprobs: (B, N, T). lengths: (B, N).
        """
        blank = self.config["blank"]
        fresh = np.ones(path.shape, dtype=bool)
        fresh[..., 1:] = path[..., 1:] != path[..., :-1]
        kept = fresh & (path != blank) & (np.arange(path.shape[-1]) < lengths[..., None])
        order = np.argsort(~kept, axis=-1, kind="stable")
        sizes, kept = kept.sum(-1), np.take_along_axis(kept, order, -1)
        tokens = np.where(kept, np.take_along_axis(path, order, -1), self.pad)
        tokens[..., 0] = np.where(sizes == 0, self.eos, tokens[..., 0])
        return tokens, np.where(kept, np.take_along_axis(lprobs, order, -1), 0), np.maximum(sizes, 1)

    # -- Mask-Predict --------------------------------------------------------------------------------------------------

    def mask_predict(self, source: np.ndarray) -> Tuple[np.ndarray, ...]:
        """Mask-Predict (Ghazvininejad et al. 2019, sections 3.2 and 3.3) of sources (B, S).

        Returns:
            tokens, lprobs (B, N, T), 0 beyond the lengths; lengths, keep, steps (B, N).
        """
        length_lprobs, *memory = self.run("encoder", {"src_tokens": source})
        lengths, keep = candidate_lengths(length_lprobs, self.options["length_beam"], self.longest(source))
        passes, schedule, width = self.options["iterations"], self.options["schedule"], int(lengths.max())
        real = np.arange(width) < lengths[..., None]
        tokens = np.where(real, self.symbols["mask"], self.pad)
        lprobs = np.where(real, np.float32(0), np.float32(np.inf))
        picked = np.broadcast_to(np.arange(width), real.shape)
        steps = np.zeros_like(lengths)
        state, masked = (tokens, lprobs, steps), real
        self.fill(state, picked, real, source, memory)
        for done in range(1, passes):
            if schedule == "confidence":
                picked, counts = self.uncommitted(lprobs, lengths, masked, done)
            else:
                picked, counts = (
                    np.argsort(lprobs, axis=-1, kind="stable"),
                    remask_count(lengths, done, passes, schedule),
                )
            most = int(counts.max())
            if not most:
                break
            picked = picked[..., :most]
            chosen = np.arange(most) < counts[..., None]
            masked = np.zeros_like(real)
            np.put_along_axis(masked, picked, chosen, -1)
            self.fill(state, picked, chosen, source, memory)
        return tokens, np.where(real, lprobs, 0), lengths, keep, steps

    def fill(self, state: Tuple[np.ndarray, ...], picked, chosen, source, memory: List[np.ndarray]) -> None:
        """Mask the chosen ones of the picked positions, predict them, and write them into the state.

        Sentences without a chosen position leave the batch.

        Args:
            state: tokens, lprobs (B, N, T), steps (B, N). picked: (B, N, P) int64. chosen: (B, N, P) bool.
            source, memory: the encoder's input and its keys and values.
        """
        active = chosen.any((1, 2))
        if not active.all():
            part = [array[active] for array in state]
            self.fill(part, picked[active], chosen[active], source[active], [array[active] for array in memory])
            for array, new in zip(state, part):
                array[active] = new
            return
        tokens, lprobs, steps = state
        old = np.take_along_axis(tokens, picked, -1)
        np.put_along_axis(tokens, picked, np.where(chosen, self.symbols["mask"], old), -1)
        inputs = {"tokens": tokens, "picked": np.ascontiguousarray(picked), "src_tokens": source}
        inputs.update(zip(self.config["memory"], memory))
        best, scores = self.run("pass", inputs)
        np.put_along_axis(tokens, picked, np.where(chosen, best, old), -1)
        np.put_along_axis(lprobs, picked, np.where(chosen, scores, np.take_along_axis(lprobs, picked, -1)), -1)
        steps += chosen.any(-1)

    def uncommitted(self, lprobs, lengths, masked, done: int) -> Tuple[np.ndarray, np.ndarray]:
        """``MaskPredictGenerator.uncommitted``: positions (B, N, T), those that stay open first, and their numbers
        (B, N).
        """
        threshold = self.options["confidence_threshold"]
        lprobs = np.where(masked, lprobs, np.float32(np.inf))
        unsure = (lprobs < np.float32(math.log(threshold) if threshold > 0 else -math.inf)).sum(-1)
        linear = remask_count(lengths, done, self.options["iterations"], "linear")
        at_most = np.maximum(np.minimum(linear, masked.sum(-1) - 1), 0)
        return np.argsort(lprobs, axis=-1, kind="stable"), np.minimum(unsure, at_most)


def candidate_lengths(lprobs: np.ndarray, beam: int, longest: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The most probable lengths, as ``nar_plugins/generators/canvas/lengths.py`` chooses them.

    Args:
        lprobs: (B, classes). longest: (B,) int64.

    Returns:
        lengths: (B, N) int64. keep: (B, N) bool, False for duplicates and lengths of probability 0.
    """
    if np.isnan(lprobs).any():
        raise ValueError("the model's output is NaN: its weights are NaN themselves (a training that diverged)")
    beyond = np.arange(lprobs.shape[1]) > np.maximum(longest, SHORTEST)[:, None]
    lprobs = np.where(beyond, -np.inf, lprobs)
    lengths = np.argsort(-lprobs, axis=1, kind="stable")[:, : min(beam, lprobs.shape[1] - 1)]
    keep = np.take_along_axis(lprobs, lengths, 1) > -np.inf
    keep[:, 0] = True
    lengths = np.maximum(np.where(keep, lengths, SHORTEST), SHORTEST)
    same = (lengths[:, :, None] == lengths[:, None, :]) & keep[:, None, :]
    return lengths, keep & ~np.tril(same, -1).any(2)


def remask_count(lengths: np.ndarray, done: int, passes: int, schedule: str) -> np.ndarray:
    """Positions to mask again, as ``nar_plugins/generators/canvas/schedule.py`` says: (...) int64."""
    if schedule == "cosine":  # in float32, as PyTorch multiplies integers
        share = np.float32(math.cos(math.pi * done / (2 * passes)))
        count = np.floor(lengths.astype(np.float32) * share + np.float32(1e-9)).astype(np.int64)
    else:
        count = lengths * (passes - done) // passes
    return np.maximum(count, 1)


def hypothesis(tokens: List[int], positional_scores: List[float], score: float, steps: int) -> Dict:
    return {"tokens": tokens, "positional_scores": positional_scores, "score": score, "steps": steps}


def padded(rows: Sequence[Sequence[int]], pad: int) -> np.ndarray:
    """Rows of tokens as one array (B, S) int64, padded on the right."""
    batch = np.full((len(rows), max(map(len, rows))), pad, dtype=np.int64)
    for row, tokens in zip(batch, rows):
        row[: len(tokens)] = tokens
    return batch


# -- the folder --------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> Dict:
    """The content of config.json.

    Raises:
        ValueError: it is missing, foreign or of another version, or a file that it names is missing.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}: give a folder that nar-export onnx made")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): export the model again") from None
    if not isinstance(config, dict) or config.get("made_by") != "nar-export onnx":
        raise ValueError(f"{path} was not written by nar-export onnx: give a folder that it made")
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {config.get('format')}, this program reads {FORMAT}: export the model again"
        )
    probe = [config["int8"]["file"]] if config["int8"] else []
    for name in (*(f"{graph}.onnx" for graph in config["graphs"]), *config["dictionaries"].values(), *probe):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: export the model again")
    return config


def checked_options(config: Dict, given: Dict) -> Dict:
    """The options of the export, replaced by those given.

    Raises:
        ValueError: one is unknown, fixed by the export, or has no meaning.
    """
    known = (*OPTIONS, *(ITERATIVE if config["kind"] == "iterative" else ()))
    for name in given:
        if name not in known:
            fixed = name in config["decoding"]
            reason = f"was fixed at {config['decoding'][name]} by the export" if fixed else "is no option of this model"
            raise ValueError(f"{name} {reason}: the options are {', '.join(known)}")
    options = {**config["decoding"], **given}
    if config["kind"] == "iterative":
        for name in ("iterations", "length_beam"):
            if options[name] < 1:
                raise ValueError(f"{name} {options[name]}: at least 1")
        if options["schedule"] not in SCHEDULES:
            raise ValueError(f"schedule {options['schedule']}: one of {', '.join(SCHEDULES)}")
        if not 0 <= options["confidence_threshold"] <= 1:
            raise ValueError(f"confidence_threshold {options['confidence_threshold']}: a probability, from 0 to 1")
    return options


def read_symbols(folder: Path, config: Dict, side: str) -> List[str]:
    """The symbols of a dictionary of fairseq's: those that stand before every file's, the file's, and ``<mask>``."""
    lines = (folder / config["dictionaries"][side]).read_text(encoding="utf-8").split("\n")
    symbols = list(config["before"][side])
    for line in filter(None, lines):
        symbol, count = line.rstrip().rsplit(" ", 1)
        symbols.append(symbol.rsplit(" ", 1)[0] if count == "#fairseq:overwrite" else symbol)
    return symbols + config["after"][side]


def index_of(symbols: List[str], config: Dict, unreadable: Set[str]) -> Dict[str, int]:
    """The index of every symbol that text may hold; of equal symbols the last one's.

    Args:
        unreadable: padding and the mask, which a parallel model cannot read as words.
    """
    readable = symbols[: len(symbols) - len(config["after"]["source"])]
    return {symbol: i for i, symbol in enumerate(readable) if symbol not in unreadable}


def session(path: Path, threads: Optional[int]):
    """ONNX Runtime's session of a graph, on the CPU.

    Raises:
        ValueError: it is not installed, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX Runtime is not installed: pip install 'nar-plugins[onnx]', or onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime's own classes
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def check_products(folder: Path, config: Dict, threads: Optional[int]) -> None:
    """Raise where this processor adds the products of an int8 model wrongly: x86 without VNNI does so in 16 bits."""
    probe = config["int8"]
    if probe:
        rows = np.full(probe["rows"], probe["value"], dtype=np.uint8)
        (products,) = session(folder / probe["file"], threads).run(None, {"rows": rows})
        if (products != probe["product"]).any():
            raise ValueError(
                "int8 needs a processor with VNNI, on which ONNX Runtime adds exactly: export without --int8"
            )


# -- the program -------------------------------------------------------------------------------------------------------


def lines_of(stream: Iterable[str]) -> Iterator[str]:
    """The lines of a stream that splits at \\n only, without \\n, \\r\\n and a byte order mark at the start."""
    for number, line in enumerate(stream):
        line = line[line.startswith("\ufeff") and not number :]
        line = line[:-1] if line.endswith("\n") else line
        yield line[:-1] if line.endswith("\r") else line


def fitted(lines: Iterable[str], limit: int, cut: bool) -> Iterator[str]:
    """Lines of sub-words of which none, with ``</s>``, has more than ``limit``; standard error names the others.

    Args:
        cut: keep the beginning of a line that is too long, instead of nothing.
    """
    for number, line in enumerate(lines, 1):
        symbols = line.split()
        if len(symbols) + 1 > limit:
            happens = f"cut to {limit}" if cut else "its translation is empty; cut it with --truncate-source"
            said = f"line {number} has {len(symbols) + 1} tokens, more than the {limit} source positions: {happens}"
            print(f"{Path(__file__).name}: {said}", file=sys.stderr)
            line = " ".join(symbols[: limit - 1]) if cut else ""
        yield line


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Translate standard input by the model in the folder that this file is in, or that is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, help="of ONNX Runtime (default: as many as there are cores)")
    parser.add_argument("--iterations", type=int, help="passes of an iterative model's decoder")
    parser.add_argument("--length-beam", type=int, help="lengths that an iterative model decodes")
    parser.add_argument("--truncate-source", action="store_true", help="cut lines of more tokens than positions")
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in ("iterations", "length_beam") if getattr(args, name) is not None}
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", newline="\n")  # only \n ends a line
    try:
        translator = OnnxTranslator(args.folder, args.threads, **options)
        limit = translator.config["max_source_positions"]
        lines = translator.translate([*fitted(lines_of(sys.stdin), limit, args.truncate_source)], args.batch_size)
    except ValueError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
