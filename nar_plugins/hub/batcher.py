"""One model for many threads, as in a server: texts that arrive during a batch are decoded together in the next."""

import queue
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Callable, List, NamedTuple, Sequence, Union

from torch import Tensor

from nar_plugins.hub.translator import Translation, Translator


class Job(NamedTuple):
    """A text that waits."""

    tokens: Tensor  # (S,) int64
    future: Future  # of its Translation


class Batcher:
    """Calls a Translator from one thread, with all that waits as one batch.

    Which texts share a batch depends on when they arrive. A batch changes a translation only where rounding decides
    between two tokens, and where the padded length bounds it (``max_len_a``).

    Args:
        translator: a function that loads it, such as ``partial(from_pretrained, path)``: the thread that decodes calls
            it. Or one that is loaded: where its thread has decoded, too, and lives on, that makes every small operation
            of this one slower (``findings/idle_thread_slows_every_product.sh``).
            Nothing else should call it meanwhile: it would wait for the model.
        batch_size: the most texts of a batch.
        waiting: the most texts that wait; ``translate`` blocks until there is room.

    Raises:
        ValueError: a number is below 1. What the function raises is raised, too.
    """

    def __init__(
        self, translator: Union[Translator, Callable[[], Translator]], batch_size: int = 32, waiting: int = 1024
    ):
        if batch_size < 1 or waiting < 1:
            raise ValueError(f"batch_size {batch_size}, waiting {waiting}: give whole numbers from 1 up")
        self.batch_size = batch_size
        self.jobs: queue.Queue = queue.Queue(waiting)
        self.closed, self.lock = False, threading.Lock()
        loaded: Future = Future()
        load = (lambda: translator) if isinstance(translator, Translator) else translator
        self.thread = threading.Thread(target=self.work, args=(load, loaded), name="Batcher", daemon=True)
        self.thread.start()
        self.translator: Translator = loaded.result()

    def translate(self, texts: Iterable[str]) -> List[Translation]:
        """The translations of texts, in their order; blocks until they are there.

        Raises:
            ValueError: a text cannot be translated; no other caller is affected.
        """
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise ValueError(f"texts is {type(texts).__name__}: give a list of texts, such as ['...']")
        jobs = [Job(self.translator.encode(text, f"text {i}"), Future()) for i, text in enumerate(texts, 1)]
        for job in jobs:
            with self.lock:  # nothing is put behind the end
                if self.closed:
                    raise ValueError("this Batcher is closed")
                self.jobs.put(job)
        return [job.future.result() for job in jobs]

    def close(self) -> None:
        """Translate what waits, and end; later calls of ``translate`` raise."""
        with self.lock:
            if not self.closed:
                self.closed = True
                self.jobs.put(None)
        self.thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def work(self, load: Callable[[], Translator], loaded: "Future[Translator]") -> None:
        """Load the Translator, and answer batch after batch, until the end."""
        try:
            loaded.set_result(load())
        except BaseException as error:  # noqa: BLE001  (raised in the thread that waits for the Translator)
            loaded.set_exception(error)
            return
        while True:
            batch = [self.jobs.get()]
            while batch[-1] is not None and len(batch) < self.batch_size:
                try:
                    batch.append(self.jobs.get_nowait())
                except queue.Empty:
                    break
            self.answer([job for job in batch if job is not None])
            if batch[-1] is None:
                return

    def answer(self, jobs: Sequence[Job]) -> None:
        """Set the futures; where a batch fails, each of its texts is tried alone, so that only one of them fails."""
        if not jobs:
            return
        try:
            found = self.translator.decode([job.tokens for job in jobs], self.batch_size)
            translations = [self.translator.translation(nbest) for nbest in found]
        except Exception as error:  # noqa: BLE001  (it is raised in the thread that asked)
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:
                for job in jobs:
                    self.answer([job])
            return
        for job, translation in zip(jobs, translations):
            job.future.set_result(translation)
