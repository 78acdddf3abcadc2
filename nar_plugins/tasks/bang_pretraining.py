"""Pre-training of BANG on raw text: spans are masked for the encoder, the decoder predicts them (Qi et al. 2021)."""

import logging
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Optional

from fairseq.data import TokenBlockDataset, data_utils
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import SAMPLE_BREAK_MODE_CHOICES
from omegaconf import II, MISSING

from nar_plugins.data import checks, reserved, splits
from nar_plugins.data.dictionary import add_mask
from nar_plugins.data.span_masking import SpanMaskedDataset
from nar_plugins.tasks.base import NarTask, NarTaskConfig

logger = logging.getLogger(__name__)


@dataclass
class BangPretrainingConfig(NarTaskConfig):
    data: str = field(
        default=MISSING,
        metadata={
            "help": "folder of fairseq-preprocess --only-source; several, joined by colons, are read one an epoch"
        },
    )
    tokens_per_sample: int = field(default=512, metadata={"help": "tokens a sample"})
    sample_break_mode: SAMPLE_BREAK_MODE_CHOICES = field(
        default="none",
        metadata={
            "help": "none: every sample is full; complete: samples end with a sentence; complete_doc: also with a "
            "document, which an empty line ends"
        },
    )
    span_block: int = field(default=64, metadata={"help": "one span is masked in every block of this many tokens"})
    span_ratio: str = field(default="0.15", metadata={"help": "the masked part of a block, rounded down to tokens"})
    mask_symbol: Optional[str] = field(
        default=None,
        metadata={
            "help": "symbol of the dictionary that replaces a masked token (default: [MASK] of BERT's, else <mask>)"
        },
    )
    dataset_impl: Optional[str] = II("dataset.dataset_impl")
    train_subset: str = II("dataset.train_subset")


@register_task("bang_pretraining", dataclass=BangPretrainingConfig)
class BangPretrainingTask(NarTask):
    """Samples of running text with one masked span a block. BERT's dictionary keeps its ids and its ``[MASK]``.

    Spans are a function of (seed, epoch, sample), in validation of (seed, sample); batches of (seed, epoch). The
    vocabulary is that of ``nar_translation`` with the same dictionary, so a model fine-tunes unchanged.
    """

    serves_foreign_models = False
    few_tokens = 9_000
    paper_tokens, papers = 147_456, "the paper's 147,456 (2,048 samples of 8 spans)"

    def __init__(self, cfg, dictionary):
        super().__init__(cfg)
        self.dictionary = dictionary
        checks.check_dictionaries(dictionary, dictionary)
        self.mask_index = add_mask(dictionary)
        if cfg.mask_symbol is not None and cfg.mask_symbol != dictionary[self.mask_index]:
            if cfg.mask_symbol not in dictionary:
                raise ValueError(
                    f"--mask-symbol {cfg.mask_symbol} is not in the dictionary: leave it out, and <mask> is appended"
                )
            self.mask_index = dictionary.index(cfg.mask_symbol)

    @classmethod
    def setup_task(cls, cfg, **kwargs):
        """Load the dictionary; raise for wrong options before any data are read."""
        check_options(cfg)
        folder = splits.folder_of(cfg.data)
        splits.check_folder(folder, "fairseq-preprocess --only-source")
        return cls(cfg, cls.load_dictionary(os.path.join(folder, "dict.txt")))

    source_dictionary = target_dictionary = property(lambda self: self.dictionary)

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """Cut a split into samples; raise for missing files or wrong tokens."""
        training = split == self.cfg.train_subset
        stem = os.path.join(splits.folder_of(self.cfg.data, epoch if training else 1), split)
        checks.check_text(stem, split, self.cfg.dataset_impl)
        text = data_utils.load_indexed_dataset(stem, self.dictionary, self.cfg.dataset_impl, combine=combine)
        checks.check_tokens(text, self.dictionary, split, checks.min_tokens_to_refuse(training, True))
        text = reserved.replace_reserved(text, self.dictionary, split, True, self.mask_index)
        samples = TokenBlockDataset(
            text,
            text.sizes,
            self.cfg.tokens_per_sample,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            break_mode=str(self.cfg.sample_break_mode),
        )
        self.datasets[split] = SpanMaskedDataset(
            samples,
            self.dictionary,
            self.mask_index,
            self.cfg.seed,
            self.cfg.span_block,
            self.cfg.span_ratio,
            epochs=training,
            name=split,
        )
        logger.info(f"{split}: {len(self.datasets[split])} samples of {len(text)} lines")

    def build_model(self, cfg, from_checkpoint=False):
        """The model; raise when a sample is longer than its positions."""
        model = super().build_model(cfg, from_checkpoint)
        limits = model.max_positions()
        limits = limits if isinstance(limits, tuple) else (limits,)
        positions = min((limit for limit in limits if limit is not None), default=self.cfg.tokens_per_sample)
        if positions < self.cfg.tokens_per_sample:
            raise ValueError(
                f"--tokens-per-sample {self.cfg.tokens_per_sample} is more than the model's {positions} positions: "
                "give --max-source-positions and --max-target-positions, or smaller samples"
            )
        return model

    def max_positions(self):
        """None: the limit is the model's positions."""
        return None

    def build_generator(self, models, args, *unused, **kwargs):
        """Refuse: there is nothing to generate."""
        raise ValueError(
            "--task bang_pretraining has no generation: decode its checkpoints with --task nar_translation"
        )


def check_options(cfg) -> None:
    """Raise for an option that is not served or out of range."""
    if str(cfg.sample_break_mode) == "eos":
        raise ValueError(
            "--sample-break-mode eos does not work with numpy 2 (fairseq's TokenBlockDataset needs np.compat), and "
            "a sentence is seldom long enough to mask: use none, complete or complete_doc"
        )
    if cfg.dataset_impl == "raw":
        raise ValueError("--dataset-impl raw: binarise the text (fairseq-preprocess --only-source)")
    if cfg.span_block < 1:
        raise ValueError(f"--span-block {cfg.span_block}: at least one token")
    try:
        ratio = Fraction(cfg.span_ratio)
    except ValueError:
        ratio = Fraction(0)
    if not 0 < ratio <= 1 or int(ratio * cfg.span_block) < 1:
        raise ValueError(
            f"--span-ratio {cfg.span_ratio} of --span-block {cfg.span_block} hides no token, or more than there are: "
            "the release has 0.15 of 64"
        )
    if cfg.tokens_per_sample < 2:
        raise ValueError(f"--tokens-per-sample {cfg.tokens_per_sample}: at least two")
