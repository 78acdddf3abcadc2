"""``from_pretrained(path).translate(texts)``: any model and generator of this package from Python.

The options are flags of ``fairseq-generate`` of the same names, and so are their effects: a text has the translation
that ``fairseq-interactive`` prints in its D- line.
"""

import itertools
import threading
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from fairseq import tasks, utils
from fairseq.data import data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor
from tqdm import tqdm

from nar_plugins.checkpoint_io.read import read_mapped
from nar_plugins.data.inference import truncated
from nar_plugins.data.splits import find_languages, folder_of
from nar_plugins.hub import folder as packed
from nar_plugins.hub.decoder import Decoder, load_models
from nar_plugins.hub.exported import ExportedDecoder, is_exported, languages_of
from nar_plugins.hub.options import LANGUAGES, from_keywords
from nar_plugins.hub.text import Text

LOADING = threading.Lock()  # hydra, by which fairseq makes its configuration, has one state a process
MAX_TOKENS = 16_000  # of a batch's sources, padding counted, where a sentence is not longer itself


class Translation(NamedTuple):
    """The translation of a text.

    Attributes:
        text: without sub-words, detokenised.
        score: of the generator: as a rule the mean log-probability (base e) of the tokens, ``</s>`` included.
        tokens: the symbols of the target dictionary, without ``</s>``.
        passes: calls of the decoder for this sentence.
        alternatives: the other translations of ``nbest``, best first.
    """

    text: str
    score: float
    tokens: List[str]
    passes: int
    alternatives: Tuple["Translation", ...] = ()


class Translator:
    """Models with their generator, sub-words and dictionaries.

    Any number of threads may call it. Their batches are decoded one after another, each on all of PyTorch's threads, so
    that the answers are those of one thread; ``Batcher`` joins what several threads ask for.

    Args:
        cfg: of ``fairseq-generate``.
        decoder: the models, or an exported one.
    """

    def __init__(self, cfg, task, decoder: Union[Decoder, ExportedDecoder]):
        self.task, self.nbest, self.cut = task, cfg.generation.nbest, cfg.task.truncate_source
        self.decoder, self.text = decoder, Text(cfg, task)
        positions = utils.resolve_max_positions(task.max_positions(), *decoder.max_positions())
        self.max_source = task.max_source_tokens(positions)
        self.lock = threading.RLock()  # the thread of a trace holds it around ``decode``

    def translate(
        self, texts: Iterable, batch_size: int = 32, window: int = 1024, progress: bool = False
    ) -> Union[List[Translation], "Iterator[Translation]"]:
        """Translate texts; the translations are in their order.

        Args:
            texts: a list, or an iterator, which is read by the window.
            batch_size: the most texts of a batch.
            window: texts that are read, put into batches by length, and translated before more are read.
            progress: show a progress bar.

        Returns:
            a list; for an iterator, an iterator.

        Raises:
            ValueError: a text cannot be translated; its number is named, from 1. The translations of earlier windows
                have been returned by then where this is an iterator.
        """
        return self.mapped(self.translation, texts, batch_size, window, progress)

    def hypotheses(
        self, texts: Iterable, batch_size: int = 32, window: int = 1024, progress: bool = False
    ) -> Union[List[List[Dict]], "Iterator[List[Dict]]"]:
        """fairseq's hypotheses of each text, best first, ``history`` among their entries with
        ``retain_iter_history=True``; the arguments are those of ``translate``.
        """
        return self.mapped(lambda nbest: nbest, texts, batch_size, window, progress)

    def mapped(self, function, texts, batch_size: int, window: int, progress: bool):
        """``function`` of each text's hypotheses: a list, or for an iterator an iterator."""
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise ValueError(f"texts is {type(texts).__name__}: give a list of texts, such as ['...'], or an iterator")
        for name, value in (("batch_size", batch_size), ("window", window)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value}: give a whole number from 1 up")
        stream = (function(nbest) for nbest in self.stream(texts, batch_size, window, progress))
        return stream if isinstance(texts, Iterator) else list(stream)

    def stream(self, texts: Iterable, batch_size: int, window: int, progress: bool) -> "Iterator[List[Dict]]":
        """The hypotheses of each text, window by window."""
        total = len(texts) if hasattr(texts, "__len__") else None
        remaining, first = iter(texts), 1
        with tqdm(total=total, unit=" texts", disable=not progress) as bar:
            while True:
                read = list(itertools.islice(remaining, window))
                if not read:
                    return
                sentences = [self.encode(text, f"text {number}") for number, text in enumerate(read, first)]
                yield from self.decode(sentences, batch_size, bar.update)
                first += len(read)

    def encode(self, text: str, name: str = "the text") -> Tensor:
        """The source symbols (S,) int64 of a text.

        Args:
            name: of the text, for messages.

        Raises:
            ValueError: it is no text, or too long for the models.
        """
        if not isinstance(text, str):
            raise ValueError(f"{name} is {type(text).__name__}: give a string")
        try:
            text.encode("utf-8")  # not every option of sub-words asks for it
            tokens = self.text.encode(text)
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is no Unicode text (character {error.start}: {error.reason})") from error
        if self.max_source is not None and len(tokens) > self.max_source:
            if not self.cut:
                raise ValueError(
                    f"{name} has {len(tokens)} tokens, the models have {self.max_source} source positions: split it "
                    "into sentences, or load with truncate_source=True"
                )
            tokens = truncated(tokens, self.max_source)
        return tokens

    def decode(
        self, sentences: Sequence[Tensor], batch_size: int, on_batch: Optional[Callable[[int], object]] = None
    ) -> List[List[Dict]]:
        """fairseq's hypotheses of sentences (S,) int64, in their order; sentences of similar length are in a batch.

        Args:
            on_batch: called after each batch with its number of sentences.
        """
        sizes = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        if not len(sizes):
            return []
        dataset = self.task.build_dataset_for_inference([*sentences], sizes.tolist())
        results: List[Optional[List[Dict]]] = [None] * len(sizes)
        max_tokens = max(MAX_TOKENS, int(sizes.max()))
        order = sizes.argsort(kind="stable")
        for batch in data_utils.batch_by_size(order, None, sizes[order], max_tokens, batch_size):
            sample = dataset.collater([dataset[i] for i in batch])
            inputs = {name: sample["net_input"][name] for name in ("src_tokens", "src_lengths")}
            with self.lock:
                hypotheses = self.decoder({"net_input": inputs})
            for number, nbest in zip(sample["id"].tolist(), hypotheses):
                results[number] = nbest
            if on_batch is not None:
                on_batch(len(hypotheses))
        return results

    def translation(self, nbest: List[Dict]) -> Translation:
        """The translation of a sentence, of its hypotheses, best first."""
        ignored = getattr(self.decoder.generator, "symbols_to_strip_from_output", None)
        found = []
        for hypothesis in nbest[: self.nbest]:
            tokens = hypothesis["tokens"].int().cpu()
            text, symbols = self.text.decode(tokens, ignored=ignored), self.text.symbols(tokens, ignored)
            found.append(Translation(text, float(hypothesis["score"]), symbols, hypothesis["steps"]))
        return found[0]._replace(alternatives=tuple(found[1:]))


def from_pretrained(path: Union[str, Path], data: Union[str, Path, None] = None, **options) -> Translator:
    """A Translator of a checkpoint or of a folder of ``nar-pack``, on the GPU where there is one, or of a folder of
    ``nar-export onnx``, on the CPU. Threads that call it load one after another.

    Args:
        path: a checkpoint, several joined by colons (an ensemble), or a folder.
        data: of a checkpoint: the folder with its dictionaries; None: the checkpoint's own folder, or else that of its
            training data.
        options: flags of ``fairseq-generate``: the generator's (``iterations=4``, ``beam=1``, ``decode_dtype="int8"``),
            sub-words (``bpe="sentencepiece", sentencepiece_model="spm.model"``), ``cpu=True``, ``fp16=True``.

    Raises:
        ValueError: a file is missing, unsafe or does not fit, or an option is unknown or cannot be honoured.
    """
    with LOADING:
        return load(path, data, options)


def load(path: Union[str, Path], data: Union[str, Path, None], options: Dict[str, Any]) -> Translator:
    """``from_pretrained``, for one thread."""
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path is {type(path).__name__}: give a checkpoint, or a folder of nar-pack or nar-export")
    folder = Path(path) if Path(path).is_dir() else None
    exported = folder is not None and is_exported(folder)
    if folder is not None and data is not None:
        raise ValueError(f"data={data}: {path} has dictionaries of its own: leave it out")
    if folder is None:
        data, languages = trained_on(str(path), data)
        languages.update({name: options[name] for name in LANGUAGES if options.get(name) is not None})
        pair = find_languages(folder_of(data), *(languages.get(name) for name in LANGUAGES))
        options.update(zip(LANGUAGES, pair))  # fairseq's Moses tokeniser needs them from the command line
    elif exported:
        data, options = folder, {**dict(zip(LANGUAGES, languages_of(folder))), **options}
    else:
        data, config = folder, packed.read(folder)
        options = {**packed.options_of(config, folder), **options}
    arguments = from_keywords(str(path), str(data), options)
    cfg = convert_namespace_to_omegaconf(arguments)
    task = tasks.setup_task(cfg.task)
    if folder is None:
        decoder = Decoder(cfg, task, load_models(cfg, task))
    elif exported:
        decoder = ExportedDecoder(folder, arguments, task)
    else:
        decoder = Decoder(cfg, task, [packed.load_model(config, folder, task, cfg)])
    return Translator(cfg, task, decoder)


def trained_on(path: str, data: Union[str, Path, None]) -> Tuple[str, Dict[str, str]]:
    """The folder with a checkpoint's dictionaries, and its languages as options where the checkpoint has them.

    Args:
        path: one checkpoint, or several. data: the folder, if it was given.

    Raises:
        ValueError: no folder is given, and none is found; ``CheckpointError`` where there is no checkpoint.
    """
    first, *others = utils.split_paths(path)
    state = read_mapped(first)
    for other in others:
        read_mapped(other)  # fairseq reports a missing one in other words
    trained = (state.get("cfg") or {}).get("task") or state.get("args") or {}
    trained = vars(trained) if isinstance(trained, Namespace) else dict(trained)
    languages = {name: trained[name] for name in LANGUAGES if isinstance(trained.get(name), str)}
    if data is not None:
        return str(data), languages
    candidates = [Path(first).parent]
    if trained.get("data"):
        candidates.append(Path(utils.split_paths(trained["data"])[0]))
    for candidate in candidates:
        if any(candidate.glob("dict.*.txt")):
            return str(candidate), languages
    raise ValueError(f"{path}: no dictionaries beside it: give data=FOLDER, the folder with dict.{{LANGUAGE}}.txt")
