"""What a model writes in each of its passes, from the observers of the generators' loops.

A sentence is decoded once, as ``Translator.translate`` decodes it. What the observer of the generator was told becomes
frames: one or two a pass, each a row of cells; those of a directed acyclic graph are its vertices, with links. A
generator that tells nothing is shown by the ``history`` of its hypothesis (``--retain-iter-history``).
"""

import math
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from torch import Tensor

from nar_plugins.generators.canvas.base import CanvasGenerator, Pass
from nar_plugins.generators.canvas.dag import ObservedGraph
from nar_plugins.generators.hypothesis import BLANK, segmentation
from nar_plugins.generators.left_to_right.base import Call, LeftToRightGenerator
from nar_plugins.hub import Translation, Translator
from nar_plugins.models.dag.fuzzy import expected_visits

# the states of a cell
KEPT = "kept"  # decided in an earlier pass
MASKED = "masked"  # to be predicted in this pass
NEW = "new"  # predicted in this pass
DRAFT = "draft"  # proposed, not verified yet
ACCEPTED = "accepted"  # a draft that stays
REJECTED = "rejected"  # a draft or a prediction that is dropped
CORRECTED = "corrected"  # the token in the place of a rejected draft
EMPTY = "blank"  # CTC's blank
REPEATED = "repeated"  # CTC: equal to the position before, counts once
START = "start"  # the first vertex of a graph, which has no token
PATH = "path"  # a vertex on the path; the percentage is that of the link to it
ASIDE = "aside"  # a vertex that the path leaves out

SHOWN = 0.01  # vertices that fewer paths visit are left out of the picture
DRAWN = 0.05  # likewise links


class Cell(NamedTuple):
    """A token as it is shown."""

    text: str
    state: str
    percent: Optional[int]  # its probability in the pass that predicted it, 0 to 100; None: unknown
    joined: bool  # it continues the word of the cell before


class Arc(NamedTuple):
    """A link between two cells."""

    start: int  # the cells' indices
    end: int
    percent: int  # its probability, 0 to 100
    chosen: bool  # the path takes it


class Frame(NamedTuple):
    """The tokens at one moment."""

    number: int  # of the decoder pass, from 1
    label: str
    cells: List[Cell]
    arcs: Sequence[Arc] = ()


class Trace(NamedTuple):
    """How a text was translated."""

    translation: Translation
    seconds: float  # the decoding of this one sentence; encoding the text and making the frames are not in it
    source: List[str]  # the symbols that the model reads, without </s>
    frames: List[Frame]  # none: an empty source, which takes no pass


class Graph(NamedTuple):
    """The graph of one sentence, of L vertices, and R paths through it."""

    tokens: List[int]  # of each vertex the most probable one
    lprobs: List[float]  # theirs
    links: List[List[float]]  # the probability of the link from one to another
    visits: List[float]  # how probable it is that a path visits the vertex
    paths: List[List[int]]  # their vertices


class Step(NamedTuple):
    """A call of a left-to-right loop, copied: the loop goes on writing into its batch. Of one sentence, W columns."""

    batch: int  # id of the batch: a cascade decodes a second one
    tokens: Tensor  # (W,) int64, and beyond what is decided what the call wrote
    lprobs: Tensor  # (W,)
    size: Tensor  # () int64, tokens decided
    count: Tensor  # () int64, those of this call
    proposed: Tensor  # (n,) int64


def trace(translator: Translator, text: str) -> Trace:
    """Translate a text and show its passes; the translation is that of ``translator.translate([text])``.

    Raises:
        ValueError: the text cannot be translated.
    """
    tokens = translator.task.as_read(translator.encode(text))
    generator, events = translator.decoder.generator, []
    observed = isinstance(generator, (CanvasGenerator, LeftToRightGenerator))
    with translator.lock:  # no other thread's sentence is observed
        before = generator.observer if observed else None
        if observed:
            generator.observer = lambda event: events.append(step_of(event) if isinstance(event, Call) else event)
        try:
            start = time.perf_counter()
            (nbest,) = translator.decode([tokens], 1)
            seconds = time.perf_counter() - start
            events = [whole(event) for event in events]
        finally:
            if observed:
                generator.observer = before
    shown = Shown(translator)
    frames = shown.frames(nbest[0], events) if nbest[0]["steps"] else []
    source = [translator.task.source_dictionary[int(token)] for token in tokens[:-1]]
    return Trace(translator.translation(nbest), seconds, source, frames)


def whole(event):
    """An event whose graph, if it has one, is that of its only sentence with the tokens of all vertices."""
    seen: Optional[ObservedGraph] = getattr(event, "graph", None)
    if seen is None:
        return event
    size = int(seen.graph.last[0]) + 1
    words, links = seen.words(), seen.graph.links.exp()
    paths = [vertices[:steps].tolist() for vertices, steps in zip(seen.paths.vertices, seen.paths.steps.tolist())]
    parts = (part[0, :size].tolist() for part in (words.tokens, words.lprobs))
    graph = Graph(*parts, links[0, :size, :size].tolist(), expected_visits(links)[0, :size].tolist(), paths)
    return event._replace(graph=graph)


def step_of(call: Call) -> Step:
    """A copy of what a call decided for the only sentence of its batch."""
    batch = call.batch
    parts = (part[0].clone() for part in (batch.tokens, batch.scores, batch.sizes, call.accepted, call.proposed))
    return Step(id(batch), *parts)


class Shown:
    """Makes frames of what a translator's generator told.

    Args:
        translator: of the models that decoded.
    """

    def __init__(self, translator: Translator):
        self.generator, self.dictionary = translator.decoder.generator, translator.task.target_dictionary
        self.pad, self.eos = self.dictionary.pad(), self.dictionary.eos()
        self.blank = getattr(self.generator, "blank", None)
        self.kind = segmentation(self.dictionary)

    def frames(self, best: Dict[str, Any], events: Sequence) -> List[Frame]:
        """The frames of a sentence.

        Args:
            best: its best hypothesis. events: a ``Pass`` or ``Step`` for every pass; none: of the history.
        """
        tokens, lprobs = best["tokens"].tolist(), best["positional_scores"].tolist()
        if not events:
            return self.history_frames(best, tokens, lprobs)
        if isinstance(events[0], Step):
            frames, last = self.step_frames(events)
        elif events[0].graph is not None:
            frames, last = self.graph_frames(events[0], tokens, lprobs)
        else:
            frames, last = self.pass_frames(events, tokens, lprobs)
        if last == tokens:
            return frames
        label = "blanks and repetitions dropped" if self.blank is not None else "repetitions dropped"
        return [*frames, Frame(frames[-1].number, label, self.cells(tokens, KEPT, lprobs))]

    # -- cells ---------------------------------------------------------------------------------------------------------

    def cells(self, tokens: Sequence[int], states, lprobs: Sequence[Optional[float]] = ()) -> List[Cell]:
        """Cells of tokens; ``states`` is one for all, or one for each."""
        states = [states] * len(tokens) if isinstance(states, str) else states
        lprobs = [*lprobs, *[None] * len(tokens)]
        return [self.cell(token, state, lprob) for token, state, lprob in zip(tokens, states, lprobs)]

    def cell(self, token: int, state: str, lprob: Optional[float] = None) -> Cell:
        """A cell; ``joined`` is what the symbol itself says, a word's first piece is the browser's to see."""
        percent = None if lprob is None or not math.isfinite(lprob) else round(100 * math.exp(min(lprob, 0.0)))
        if state in (MASKED, EMPTY):
            return Cell("", state, percent, False)
        symbol = self.dictionary[token]
        if token < self.dictionary.nspecial or symbol.startswith("<"):
            return Cell(symbol, state, percent, False)
        if self.kind == "SentencePiece":
            return Cell(symbol.replace(BLANK, "") or "\u2423", state, percent, not symbol.startswith(BLANK))
        if self.kind == "WordPiece":
            return Cell(symbol[2:] if symbol.startswith("##") else symbol, state, percent, symbol.startswith("##"))
        return Cell(symbol, state, percent, False)  # BPE's @@ stays: it says that the word goes on

    # -- a canvas ------------------------------------------------------------------------------------------------------

    def pass_frames(self, passes: Sequence[Pass], tokens: List[int], lprobs: List[float]) -> Tuple[List[Frame], list]:
        """The frames of the canvas that became the hypothesis, and its last tokens."""
        row = self.winner(passes[-1], tokens, lprobs)
        frames, now = [], []
        for number, each in enumerate(passes, 1):
            length = int(each.tokens[row].ne(self.pad).sum())
            predicted = each.predicted[row, :length].tolist()
            if not any(predicted):  # the passes of another candidate
                break
            before, now = now or [self.pad] * length, each.tokens[row, :length].tolist()
            scores = each.lprobs[row, :length].tolist()
            known = [score if not new else None for score, new in zip(scores, predicted)]
            count = sum(predicted)
            label = f"{plural(count, 'position')} masked again" if number > 1 else plural(count, "empty position")
            frames.append(Frame(number, label, self.cells(before, [MASKED if p else KEPT for p in predicted], known)))
            label = f"{plural(count, 'token')} predicted at once"
            frames.append(Frame(number, label, self.cells(now, self.states(now, predicted), scores)))
        return frames, now

    def states(self, tokens: List[int], predicted: List[bool]) -> List[str]:
        """The states of a canvas after a pass."""
        if self.blank is None:
            return [NEW if new else KEPT for new in predicted]
        previous = [None, *tokens]
        return [
            EMPTY if token == self.blank else REPEATED if token == other else NEW
            for token, other in zip(tokens, previous)
        ]

    def winner(self, last: Pass, tokens: List[int], lprobs: List[float]) -> int:
        """The canvas whose tokens and probabilities are the hypothesis's; with CTC there is one."""
        for row, (canvas, scores) in enumerate(zip(last.tokens.tolist(), last.lprobs.tolist())):
            canvas = canvas[: sum(token != self.pad for token in canvas)]
            kept = self.generator.dedup.keep(canvas)
            found = [canvas[i] for i in kept], [scores[i] for i in kept]
            if self.blank is not None or found == (tokens, lprobs):
                return row
        raise RuntimeError(f"no canvas of {type(self.generator).__name__} is its hypothesis")

    # -- a graph -------------------------------------------------------------------------------------------------------

    def graph_frames(self, event: Pass, tokens: List[int], lprobs: List[float]) -> Tuple[List[Frame], list]:
        """The frames of a graph: its vertices empty, with tokens, and with the path of the hypothesis; then the tokens
        of the path, with the probability of token and link. Vertices that hardly any path visits are left out.

        Args:
            event: with a ``Graph``.
        """
        graph, row = event.graph, self.winner(event, tokens, lprobs)
        path, size = graph.paths[row], len(graph.tokens)
        shown = [0, *(v for v in range(1, size) if graph.visits[v] >= SHOWN or v in path)]
        links = {(u, v): graph.links[u][v] for u, v in zip((0, *path), path)}
        taken = {v: math.log(probability) if probability > 0 else -math.inf for (_, v), probability in links.items()}

        def cells(states, known) -> List[Cell]:
            rest = [self.cell(graph.tokens[v], state, lprob) for v, state, lprob in zip(shown[1:], states, known)]
            return [Cell("", START, None, False), *rest]

        words = [graph.lprobs[v] for v in shown[1:]]
        left_out = f"; {size - len(shown)} that hardly any path visits are left out" if len(shown) < size else ""
        chosen = [PATH if v in path else ASIDE for v in shown[1:]]
        frames = [
            Frame(1, f"{size} vertices{left_out}", cells([MASKED] * len(words), [None] * len(words))),
            Frame(
                1, "the best token of each, and the links", cells([NEW] * len(words), words), self.arcs(graph, shown)
            ),
            Frame(
                1,
                f"a path of {plural(len(path), 'vertex', 'vertices')}, and the probability of each of its links",
                cells(chosen, [taken.get(v, lprob) for v, lprob in zip(shown[1:], words)]),
                self.arcs(graph, shown, links),
            ),
        ]
        now = event.tokens[row, : len(path)].tolist()
        scores = event.lprobs[row, : len(path)].tolist()
        frames.append(Frame(1, "its tokens, and the probability of token and link", self.cells(now, NEW, scores)))
        return frames, now

    def arcs(self, graph: Graph, shown: List[int], chosen=()) -> List[Arc]:
        """The links that paths often take between the vertices that are shown, and the chosen ones, which come last."""
        visits = [1.0, *graph.visits[1:]]
        found = []
        for start, u in enumerate(shown):
            for end, v in enumerate(shown[start + 1 :], start + 1):
                probability = graph.links[u][v]
                if (u, v) in chosen or visits[u] * probability >= DRAWN:
                    found.append(Arc(start, end, round(100 * min(probability, 1.0)), (u, v) in chosen))
        return sorted(found, key=lambda arc: arc.chosen)

    # -- from left to right --------------------------------------------------------------------------------------------

    def step_frames(self, steps: Sequence[Step]) -> Tuple[List[Frame], List[int]]:
        """The frames of a left-to-right loop, and the tokens that it decided."""
        frames, decided = [], []
        verifies = self.generator.feeds_proposals
        for number, step in enumerate(steps, 1):
            size, count = int(step.size), int(step.count)
            written, lprobs, proposed = step.tokens.tolist(), step.lprobs.tolist(), step.proposed.tolist()
            decided, start = written[:size], size - count
            kept = self.cells(decided[:start], KEPT, lprobs)
            again = "decoded again: " if number > 1 and step.batch != steps[number - 2].batch else ""
            if verifies:
                cells, label = self.verified(decided[start:], lprobs[start:], proposed)
                drafts = self.cells(proposed, DRAFT)
                if drafts:
                    frames.append(Frame(number, f"{again}{plural(len(drafts), 'draft')}", [*kept, *drafts]))
            else:
                rest = proposed[count:]
                rest = [] if self.eos in decided[start:] else rest[: index(rest, self.eos) + 1]
                cells = self.cells(decided[start:], NEW, lprobs[start:])
                cells += self.cells(rest, REJECTED, lprobs[size:])
                masks = self.cells([self.pad] * len(cells), MASKED)
                frames.append(Frame(number, f"{again}{plural(len(proposed), 'mask')}", [*kept, *masks]))
                label = f"{plural(count, 'token')} kept"
            frames.append(Frame(number, f"{again}{label}", [*kept, *cells]))
        return frames, decided

    def verified(self, decided: List[int], lprobs: List[float], drafts: List[int]) -> Tuple[List[Cell], str]:
        """What became of the drafts, and a label.

        Args:
            decided: the tokens of the call; the last one is greedy search's own, unless it is a drafted ``</s>``.
            lprobs: theirs, and more.
        """
        accepted = [token == draft for token, draft in zip(decided, drafts)]
        count = accepted.index(False) if False in accepted else len(accepted)
        cells = self.cells(decided[:count], ACCEPTED, lprobs)
        if count < len(decided):
            wrong = drafts[count : count + 1]
            cells += self.cells(wrong, REJECTED)
            cells += self.cells(decided[count:], CORRECTED if wrong else NEW, lprobs[count:])
        cells += self.cells(drafts[max(count, len(decided)) :], REJECTED)
        if not drafts:
            return cells, f"{plural(len(decided), 'token')} decided"
        return cells, f"{count} of {plural(len(drafts), 'draft')} accepted, {plural(len(decided), 'token')} decided"

    # -- without an observer -------------------------------------------------------------------------------------------

    def history_frames(self, best: Dict[str, Any], tokens: List[int], lprobs: List[float]) -> List[Frame]:
        """The frames of the hypothesis's history; without one, of the hypothesis alone."""
        frames, before = [], []
        for number, entry in enumerate(best.get("history") or [{"tokens": best["tokens"]}], 1):
            now = entry["tokens"].tolist()
            new = [i >= len(before) or before[i] != token for i, token in enumerate(now)]
            known = lprobs if now == tokens[: len(now)] else ()
            label = f"{plural(sum(new), 'token')} decided"
            frames.append(Frame(number, label, self.cells(now, [NEW if each else KEPT for each in new], known)))
            before = now
        return frames


def index(tokens: List[int], token: int) -> int:
    """Where a token stands first; the last index where it does not."""
    return tokens.index(token) if token in tokens else len(tokens) - 1


def plural(count: int, name: str, several: str = "") -> str:
    """ "1 token", "2 tokens"."""
    return f"{count} {name}" if count == 1 else f"{count} {several or f'{name}s'}"
