"""Run an exported model with ONNX Runtime and NumPy; neither PyTorch nor fairseq is imported.

``nar-export onnx`` puts a copy of this file into every folder it makes, so that the folder needs nothing else:

    python FOLDER/runtime.py < sources > translations     one line per sentence, sub-words separated by blanks

or, in Python, ``OnnxTranslator(FOLDER).translate(lines)``. The graphs do what ``nar_plugins/export/graphs.py`` says.
What is here is around them: dictionaries, batches, CTC's collapse, the choice of lengths, Mask-Predict's loop, and the
paths through a directed acyclic graph. It is NumPy's twin of ``nar_plugins/generators/canvas``; every export is checked
against that.
"""

import argparse
import hashlib
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
DEDUPS = ("none", "token")
WALKS, VITERBIS = ("lookahead", "greedy"), ("viterbi", "joint-viterbi")  # of dag_decode
OPTIONS = ("max_len_a", "max_len_b", "lenpen", "unnormalized", "dedup")  # that every model has, besides its kind's
OF_KIND = {
    "iterative": ("iterations", "length_beam", "length_weight", "schedule", "confidence_threshold"),
    "dag": ("dag_decode", "length_beam"),
}
LATER = {"length_weight": 0.0}  # options that folders of the first version do not hold, with their meaning there
IMPOSSIBLE = np.float32(-1e4)  # the log-probability of a length of probability 0: finite, to be weighted
ENTRIES = {  # of config.json, that must be there
    **{"kind": str, "graphs": list, "decoding": dict, "symbols": dict, "languages": list, "dictionaries": dict},
    **{"before": dict, "after": dict, "max_source_positions": int},
}
KINDS = ("lengths", "fertilities", "ctc", *OF_KIND)
OFTEN = 0.2  # a vertex on so many paths is probably seen by lookahead
LONGEST = 2  # tokens of a path of Viterbi's, for every source token
VERTICES = 512  # whose tokens are computed together


class OnnxTranslator:
    """An exported folder, loaded.

    Args:
        folder: what ``nar-export onnx`` made.
        threads: of ONNX Runtime; None: as many as there are cores.
        options: instead of the options of the export (``config["decoding"]``): iterations, length_beam, length_weight,
            schedule and confidence_threshold of iterative models, dag_decode and length_beam of graphs, max_len_a,
            max_len_b, lenpen, unnormalized, dedup.

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
        check_files(self.folder, self.config)
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
            ValueError: a line has more tokens than the model has positions, or ``lines`` is one text.
        """
        if isinstance(lines, (str, bytes)):
            raise ValueError(f"lines is {type(lines).__name__}: give a list of lines, such as ['...']")
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
        source, kind = np.ascontiguousarray(source, dtype=np.int64), self.config["kind"]
        totals = None
        if kind == "iterative":
            tokens, lprobs, lengths, keep, steps, totals = self.mask_predict(source)
        elif kind == "dag":
            tokens, lprobs, lengths, keep, totals = self.paths(source)
            steps = np.ones_like(lengths)
        else:
            tokens, lprobs, lengths, keep = self.run("model", self.one_pass_inputs(source))
            steps = np.ones_like(lengths)
        refuse_nan(lprobs)
        totals, positions = lprobs.sum(2, dtype=np.float32) if totals is None else totals, lengths
        if kind == "ctc":
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
            if not keep[n]:
                continue
            output = tokens[n, : lengths[n]].tolist()
            indices = [
                i for i, token in enumerate(output) if self.options["dedup"] == "none" or [token] != output[i - 1 : i]
            ]
            kept = [output[i] for i in indices]
            text = tuple(token for token in kept if token != self.eos)
            if text not in texts:
                found.append(hypothesis(kept, lprobs[n, indices].tolist(), float(scores[n]), int(steps[n])))
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
            tokens, lprobs (B, N, T), 0 beyond the lengths; lengths, keep, steps, and what scores are made of (B, N).
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
        lprobs, length_lprobs = np.where(real, lprobs, 0), np.take_along_axis(length_lprobs, lengths, 1)
        totals = lprobs.sum(2, dtype=np.float32)
        if self.options["length_weight"]:
            totals = totals + np.float32(self.options["length_weight"]) * np.maximum(length_lprobs, IMPOSSIBLE)
        return tokens, lprobs, lengths, keep, steps, totals

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

    # -- directed acyclic graphs ---------------------------------------------------------------------------------------

    def paths(self, source: np.ndarray) -> Tuple:
        """The paths of sources (B, S) that dag_decode takes (Huang et al. 2022, section 3.5; Shao et al. 2022).

        Returns:
            tokens, lprobs (B, N, T), of a token and the link to it, 0 beyond the lengths; lengths, keep (B, N); and the
            scores (B, N) where they are not the sum of lprobs, else None.
        """
        how = self.options["dag_decode"]
        features, links, sizes = self.run("vertices", {"src_tokens": source})
        refuse_nan(links)
        last = sizes - 1
        real = np.arange(links.shape[1]) < sizes[:, None]
        if how == "lookahead":
            words, chosen = self.lookahead(features, links, last, real)
        elif how == "joint-viterbi":
            words = self.words(features, real, last)
            chosen = self.viterbi(source, links, words[1], last)
        else:
            chosen = walks(links.argmax(2), last) if how == "greedy" else self.viterbi(source, links, None, last)
            words = self.words(features, visited(chosen, real.shape), last)

        shape = len(source), max(map(len, chosen)), max(len(path) for paths in chosen for path, _ in paths)
        tokens, lprobs = np.full(shape, self.pad, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        lengths, totals = np.ones(shape[:2], dtype=np.int64), np.zeros(shape[:2], dtype=np.float32)
        keep = np.zeros(shape[:2], dtype=bool)
        for b, paths in enumerate(chosen):
            for n, (path, total) in enumerate(paths):
                tokens[b, n, : len(path)] = words[0][b, path]
                lprobs[b, n, : len(path)] = words[1][b, path] + links[b, [0, *path[:-1]], path]
                lengths[b, n], keep[b, n], totals[b, n] = len(path), True, total
        return tokens, lprobs, lengths, keep, totals if how == "viterbi" else None

    def words(self, features: np.ndarray, wanted: np.ndarray, last: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """The most probable tokens of the wanted vertices and their log-probabilities, ``</s>`` of the last ones: both
        (B, L).

        Args:
            features: (B, L, D). wanted: (B, L) bool. last: (B,) int64.
        """
        rows = np.arange(len(last))
        states = np.concatenate([features[wanted], features[rows, last]])
        parts = [self.run("words", {"features": states[i : i + VERTICES]}) for i in range(0, len(states), VERTICES)]
        best, scores, ends = (np.concatenate(part) for part in zip(*parts))
        tokens, lprobs = np.full(wanted.shape, self.pad, dtype=np.int64), np.zeros(wanted.shape, dtype=np.float32)
        tokens[wanted], lprobs[wanted] = best[: -len(last)], scores[: -len(last)]
        tokens[rows, last], lprobs[rows, last] = self.eos, ends[-len(last) :]
        refuse_nan(lprobs)
        return tokens, lprobs

    def lookahead(self, features: np.ndarray, links: np.ndarray, last: np.ndarray, real: np.ndarray) -> Tuple:
        """The words of the vertices that count, and of each sentence the path to the best sum of link and token.

        The tokens of a vertex are computed where its link alone is as good as the best sum, as in the generator
        ``dag``.
        """
        known = real & (expected_visits(links) >= OFTEN)
        tokens, lprobs = self.words(features, known, last)
        while True:
            scores = links + np.where(known, lprobs, -np.inf)[:, None]
            ahead = np.arange(1, links.shape[1] + 1)  # forward also from where nothing is known
            chosen = walks(np.maximum(scores.argmax(2), ahead), last)
            left = visited(chosen, real.shape) & (ahead <= last[:, None])  # the vertices that a path goes on from
            left[:, 0] = True
            better = (links >= scores.max(2, keepdims=True)) & (links > -np.inf) & left[..., None]
            missing = better.any(1) & ~known
            if not missing.any():
                return (tokens, lprobs), chosen
            more, known = self.words(features, missing, last), known | missing
            tokens, lprobs = np.where(missing, more[0], tokens), np.where(missing, more[1], lprobs)

    def viterbi(self, source: np.ndarray, links: np.ndarray, emissions: Optional[np.ndarray], last: np.ndarray) -> List:
        """The best paths of the length_beam best lengths of every sentence, with their scores.

        Args:
            links: (B, L, L). emissions: (B, L), of the vertices' tokens; None: the links alone count. last: (B,) int64.
        """
        sources, allowed = (source != self.pad).sum(1), self.longest(source)
        chosen = []
        for b, end in enumerate(last.tolist()):
            longest = min(max(min(int(allowed[b]), LONGEST * int(sources[b]) + 1), SHORTEST), end)
            vertices = slice(0, end + 1)
            emitted = np.zeros(end + 1, dtype=np.float32) if emissions is None else emissions[b, vertices]
            scores = best_scores(links[b, vertices, vertices], emitted, longest)
            lengths = np.arange(min(longest, SHORTEST), longest + 1)  # a graph of two vertices has one path
            totals = scores[lengths, end]
            ranked = totals if self.options["unnormalized"] else totals / lengths ** self.options["lenpen"]
            order = np.argsort(-ranked, kind="stable")[: self.options["length_beam"]]
            order = order[totals[order] > -np.inf]
            if not len(order) and sources[b] > 1:
                raise ValueError(
                    "a graph has no path of the lengths that max_len_a and max_len_b allow: its links are too short; "
                    "leave them out"
                )
            chosen.append([(trace(scores, links[b], int(lengths[n]), end), totals[n]) for n in order] or [([end], 0.0)])
        return chosen


def walks(following: np.ndarray, last: np.ndarray) -> List:
    """The path of each sentence that always goes to the vertex that follows, with the score 0: it has no other.

    Args:
        following: (B, L) int64, a later vertex for each but the last. last: (B,) int64.
    """
    chosen = []
    for successors, end in zip(following.tolist(), last.tolist()):
        path = [successors[0]]
        while path[-1] < end:
            path.append(successors[path[-1]])
        chosen.append([(path, 0.0)])
    return chosen


def visited(chosen: List, shape: Tuple[int, int]) -> np.ndarray:
    """The vertices that emit a token on some path: (B, L) bool."""
    on = np.zeros(shape, dtype=bool)
    for row, paths in zip(on, chosen):
        for path, _ in paths:
            row[path] = True
    return on


def expected_visits(links: np.ndarray) -> np.ndarray:
    """How probable it is that a path visits each vertex: links (B, L, L) -> (B, L); 0 for vertex 0, which emits
    nothing.
    """
    transitions, visits = np.exp(links), np.zeros(links.shape[:2], dtype=np.float32)
    visits[:, 0] = 1
    for v in range(1, links.shape[1]):
        visits[:, v] = (visits[:, :v] * transitions[:, :v, v]).sum(1)
    visits[:, 0] = 0
    return visits


def best_scores(links: np.ndarray, emissions: np.ndarray, longest: int) -> np.ndarray:
    """The score (T + 1, L) of the best beginning of a path, of those whose t-th step leads to v.

    Args:
        links: (L, L). emissions: (L,). longest: T.
    """
    scores = np.full((longest + 1, len(emissions)), -np.inf, dtype=np.float32)
    scores[0, 0] = 0
    for t in range(longest):
        scores[t + 1] = (scores[t][:, None] + links).max(0) + emissions
    return scores


def trace(scores: np.ndarray, links: np.ndarray, steps: int, end: int) -> List[int]:
    """The vertices of the best path of so many steps. Of equally good ones, the earliest.

    Args:
        scores: (T + 1, L), ``best_scores``. links: (L, L).
    """
    path = [end]
    for t in range(steps - 1, 0, -1):
        path.append(int((scores[t] + links[: scores.shape[1], path[-1]]).argmax()))
    return path[::-1]


def refuse_nan(lprobs: np.ndarray) -> None:
    """Raise where the model's output is NaN."""
    if np.isnan(lprobs).any():
        raise ValueError("the model's output is NaN: its weights are NaN themselves (a training that diverged)")


def candidate_lengths(lprobs: np.ndarray, beam: int, longest: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The most probable lengths, as ``nar_plugins/generators/canvas/lengths.py`` chooses them.

    Args:
        lprobs: (B, classes). longest: (B,) int64.

    Returns:
        lengths: (B, N) int64. keep: (B, N) bool, False for duplicates and lengths of probability 0.
    """
    refuse_nan(lprobs)
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
    for name, kind in ENTRIES.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(f"{path} has no '{name}': copy the folder again, or export the model again")
    if config["kind"] not in KINDS:
        raise ValueError(
            f"{path} has the kind {config['kind']}, which this program does not know: use the folder's own"
        )
    probe = [config["int8"]["file"]] if config.get("int8") else []
    for name in (*(f"{graph}.onnx" for graph in config["graphs"]), *config["dictionaries"].values(), *probe):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: export the model again")
    return config


def check_files(folder: Path, config: Dict) -> None:
    """Raise for the first file that is not the one that was exported; folders of the first version do not know."""
    for name, content in config.get("files", {}).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: copy the folder again, or export the model again")
        if fingerprint(folder / name) != content:
            raise ValueError(
                f"{folder / name} is not the file that nar-export onnx wrote: copy the folder again, or export the "
                "model again"
            )


def fingerprint(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    content = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()[:16]


def checked_options(config: Dict, given: Dict) -> Dict:
    """The options of the export, replaced by those given.

    Raises:
        ValueError: one is unknown, fixed by the export, or has no meaning.
    """
    known = options_of(config["kind"])
    for name in given:
        if name not in known:
            fixed = name in config["decoding"]
            reason = f"was fixed at {config['decoding'][name]} by the export" if fixed else "is no option of this model"
            raise ValueError(f"{name} {reason}: the options are {', '.join(known)}")
    options = {"dedup": "none", **LATER, **config["decoding"], **given}
    for name in ("iterations", "length_beam"):
        if name in known and options[name] < 1:
            raise ValueError(f"{name} {options[name]}: at least 1")
    if not 0 <= options["length_weight"] < math.inf:
        raise ValueError(f"length_weight {options['length_weight']}: a number from 0 up")
    for name, values in (("dedup", DEDUPS), ("schedule", SCHEDULES), ("dag_decode", (*WALKS, *VITERBIS))):
        if name in known and options[name] not in values:
            raise ValueError(f"{name} {options[name]}: one of {', '.join(values)}")
    if "confidence_threshold" in known and not 0 <= options["confidence_threshold"] <= 1:
        raise ValueError(f"confidence_threshold {options['confidence_threshold']}: a probability, from 0 to 1")
    if "confidence_threshold" in given and options["schedule"] != "confidence":
        raise ValueError(
            f"confidence_threshold is not read by the schedule {options['schedule']}: give the schedule confidence"
        )
    if options.get("dag_decode") in WALKS:
        for name in ("length_beam", "max_len_a", "max_len_b"):
            if name in given:
                raise ValueError(
                    f"{name}: dag_decode {options['dag_decode']} has one path; give viterbi or joint-viterbi, or leave "
                    "it out"
                )
    return options


def options_of(kind: str) -> Tuple[str, ...]:
    """The options of the models of a kind that are chosen when they are run; the canvas of CTC has its own length."""
    lengths = ("max_len_a", "max_len_b") if kind == "ctc" else ()
    return (*(name for name in OPTIONS if name not in lengths), *OF_KIND.get(kind, ()))


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
    probe = config.get("int8")
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
    parser.add_argument(
        "--length-beam", type=int, help="lengths that an iterative model decodes, or Viterbi's of a dag"
    )
    parser.add_argument("--length-weight", type=float, help="how much an iterative model's score counts the length's")
    parser.add_argument("--dag-decode", choices=(*WALKS, *VITERBIS), help="how the path through a dag is found")
    parser.add_argument("--lenpen", type=float, help="an output's score is its sum by its length to this power")
    parser.add_argument("--dedup", choices=DEDUPS, help="token: drop one that equals the one before it")
    parser.add_argument("--truncate-source", action="store_true", help="cut lines of more tokens than positions")
    args = parser.parse_args(argv)
    chosen = ("iterations", "length_beam", "length_weight", "dag_decode", "lenpen", "dedup")
    options = {name: getattr(args, name) for name in chosen if getattr(args, name) is not None}
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
