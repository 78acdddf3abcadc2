"""From text to the symbols of a dictionary and back: tokeniser and sub-words as in ``fairseq-interactive``."""

from contextlib import contextmanager
from pathlib import Path
from typing import List

from fairseq.data import Dictionary
from omegaconf.errors import MissingMandatoryValue
from torch import Tensor

from nar_plugins.hub.errors import in_one_line
from nar_plugins.models.flags import flag


class Text:
    """Encodes and decodes text by ``--tokenizer``, ``--bpe`` and ``--remove-bpe``.

    Args:
        cfg: of ``fairseq-generate``.

    Raises:
        ValueError: a package or a file of an option is missing.
    """

    def __init__(self, cfg, task):
        self.source, self.target = task.source_dictionary, task.target_dictionary
        self.remove_bpe = cfg.common_eval.post_process
        with described("bpe", cfg.bpe):
            self.sub_words = task.build_bpe(cfg.bpe)
        with described("tokenizer", cfg.tokenizer):
            self.tokenizer = task.build_tokenizer(cfg.tokenizer)

    def encode(self, text: str) -> Tensor:
        """The symbols (S,) int64 of a text, with ``</s>``; unknown ones are ``<unk>``."""
        for encoder in (self.tokenizer, self.sub_words):
            text = text if encoder is None else encoder.encode(text)
        return self.source.encode_line(text, add_if_not_exist=False).long()

    def decode(self, tokens: Tensor, dictionary: Dictionary = None, ignored=None, **kwargs) -> str:
        """The text of tokens (T,), as in the D- and T- lines of ``fairseq-generate``.

        Args:
            dictionary: of the tokens; None: the target's.
            ignored: symbols that are left out besides ``</s>``.
        """
        text = self.string(tokens, dictionary, self.remove_bpe, ignored, **kwargs)
        for decoder in (self.sub_words, self.tokenizer):
            text = text if decoder is None else decoder.decode(text)
        return text

    def string(self, tokens: Tensor, dictionary=None, sub_words=None, ignored=None, **kwargs) -> str:
        """The symbols of tokens (T,) joined by blanks, or by ``sub_words``, a value of ``--remove-bpe``."""
        return (dictionary or self.target).string(tokens, sub_words, extra_symbols_to_ignore=ignored, **kwargs)

    def symbols(self, tokens: Tensor, ignored=None) -> List[str]:
        """The target symbols of tokens (T,), without ``</s>``."""
        text = self.string(tokens, ignored=ignored)
        return text.split(" ") if text else []


@contextmanager
def described(option: str, cfg):
    """Turn fairseq's errors for a missing package, or a missing or foreign file, of ``--bpe`` and ``--tokenizer`` into
    one line."""
    name = getattr(cfg, "_name", cfg)
    try:
        yield
    except MissingMandatoryValue as error:
        raise ValueError(f"{flag(option)} {name} needs {flag(error.key or 'a file')}") from error
    except (ImportError, OSError) as error:
        raise ValueError(f"{flag(option)} {name}: {' '.join(str(error).split())}") from error
    except (Exception, SystemExit) as error:  # of each package its own; subword-nmt ends the program
        if type(error) is ValueError:  # written for users
            raise
        values = [] if isinstance(cfg, str) or cfg is None else map(str, cfg.values())
        files = ", ".join(value for value in values if Path(value).exists()) or "its file"
        raise ValueError(
            f"{flag(option)} {name} cannot read {files}: give the file that it was trained into ({in_one_line(error)})"
        ) from error
