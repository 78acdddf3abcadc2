"""BLEU in validation (``--eval-bleu``): fairseq's counts, by the tokeniser of the target's language."""

import logging
from typing import Dict, List, Optional

from fairseq import metrics, utils
from fairseq.tasks.translation import EVAL_BLEU_ORDER
from sacrebleu.metrics import BLEU
from torch import Tensor

from nar_plugins.data import bleu

logger = logging.getLogger(__name__)
FLAG = "--eval-bleu-tokenize"
ENOUGH = 100  # references that are looked at for blanks: the first batches have the shortest sentences, single words


class ValidationBleu:
    """The metric of ``--eval-bleu``; its tokeniser is logged.

    Args:
        cfg: the task's. dictionary: the target's.

    Raises:
        ValueError: two flags choose the tokeniser, or it is not installed.
    """

    def __init__(self, cfg, dictionary):
        if cfg.eval_tokenized_bleu and cfg.eval_bleu_tokenize:
            raise ValueError(
                f"--eval-tokenized-bleu takes the text's own tokens, {FLAG} {cfg.eval_bleu_tokenize} makes others: "
                "leave one out"
            )
        tokenizer = "none" if cfg.eval_tokenized_bleu else cfg.eval_bleu_tokenize
        self.metric = bleu.bleu_metric(tokenizer, cfg.target_lang, FLAG)
        self.cfg, self.dictionary = cfg, dictionary
        self.first_references: Optional[List[str]] = []  # until they are checked for blanks
        logger.info(f"--eval-bleu: sacreBLEU's tokeniser {bleu.tokenizer_name(self.metric)}")

    def counts(self, said: List[Tensor], targets: Tensor, tokenizer):
        """sacreBLEU's result for a batch.

        Args:
            said: the tokens of each output. targets: (B, T) int64. tokenizer: of ``--eval-bleu-detok``, or None.
        """
        hypotheses = [self.text(tokens, bleu.UNKNOWN_IN_HYPOTHESIS, tokenizer) for tokens in said]
        targets = (utils.strip_pad(target, self.dictionary.pad()) for target in targets)
        references = [self.text(target, bleu.UNKNOWN_IN_REFERENCE, tokenizer) for target in targets]
        if self.cfg.eval_bleu_print_samples:
            unk = self.dictionary.unk_word
            logger.info(f"example hypothesis: {hypotheses[0].replace(bleu.UNKNOWN_IN_HYPOTHESIS, unk)}")
            logger.info(f"example reference: {references[0].replace(bleu.UNKNOWN_IN_REFERENCE, unk)}")
        if self.first_references is not None:
            self.first_references += references
            if len(self.first_references) >= ENOUGH:
                bleu.warn_of_no_blanks(self.metric, self.first_references, FLAG)
                self.first_references = None
        return self.metric.corpus_score(hypotheses, [references])

    def text(self, tokens: Tensor, unknown: str, tokenizer) -> str:
        """The text that is scored, by ``--eval-bleu-remove-bpe`` and ``--eval-bleu-detok``."""
        text = self.dictionary.string(tokens.int().cpu(), self.cfg.eval_bleu_remove_bpe, unk_string=unknown)
        return tokenizer.decode(text) if tokenizer else text


def validation_bleu(cfg, dictionary) -> Optional[ValidationBleu]:
    """The metric of ``--eval-bleu``, or None.

    Raises:
        ValueError: a tokeniser is chosen without it; or as ``ValidationBleu``.
    """
    if cfg.eval_bleu:
        return ValidationBleu(cfg, dictionary)
    if cfg.eval_bleu_tokenize:
        raise ValueError(f"{FLAG} {cfg.eval_bleu_tokenize} needs --eval-bleu")
    return None


def log_bleu(logging_outputs: List[Dict]) -> None:
    """Log the BLEU of a validation set; its counts as numbers, because arrays in a checkpoint do not load safely."""
    if not any("_bleu_sys_len" in log for log in logging_outputs):
        return
    names = ["_bleu_sys_len", "_bleu_ref_len"]
    names += [f"_bleu_{kind}_{n}" for kind in ("counts", "totals") for n in range(EVAL_BLEU_ORDER)]
    for name in names:
        metrics.log_scalar_sum(name, int(utils.item(sum(log.get(name, 0) for log in logging_outputs))))
    metrics.log_derived("bleu", corpus_bleu)


def corpus_bleu(meters) -> float:
    """BLEU of a validation set from the summed counts of its batches."""
    return round(
        BLEU.compute_bleu(
            correct=[int(meters[f"_bleu_counts_{n}"].sum) for n in range(EVAL_BLEU_ORDER)],
            total=[int(meters[f"_bleu_totals_{n}"].sum) for n in range(EVAL_BLEU_ORDER)],
            sys_len=int(meters["_bleu_sys_len"].sum),
            ref_len=int(meters["_bleu_ref_len"].sum),
            smooth_method="exp",
        ).score,
        2,
    )
