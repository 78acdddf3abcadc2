"""An exported model against PyTorch: the same sentences, in the same batches, padded and not."""

from typing import Dict, Iterator, List, NamedTuple

from nar_plugins.measure.systems import System

SIZES = (1, 5, 32)  # sentences of a batch: without padding, and with much of it in the data's order
TOLERANCE = 1e-3  # of a score, a mean log-probability
# With int8, of an output's score on average. Measured on small models of Multi30k: a sound graph 0.001 (cmlm, ctc) to
# 0.005 (dag), weights of 4 bits 0.03 to 0.06, scales in the wrong columns or clipped weights 0.7 to 2.0. One layer's
# wrong scales can stay below it (0.01 to 1.4): ``layers.py`` sees those.
ROUGHLY = 0.1


class Agreement(NamedTuple):
    """How an exported model agrees with PyTorch.

    Attributes:
        sentences: that were compared, in batches of every size. same: whose output is the same.
        largest: the largest difference of two scores, of outputs and in float32 of tokens. mean: the mean difference.
    """

    sentences: int
    same: int
    largest: float
    mean: float


def compare(system: System, translator, count: int, exact: bool) -> Agreement:
    """Decode sentences with both.

    Outputs may differ where their scores do not: two tokens are then equally probable.

    Args:
        system: PyTorch's, in float32. translator: ``runtime.OnnxTranslator``.
        count: sentences, the data's first. exact: float32; int8 need only have similar scores.

    Raises:
        ValueError: the outputs differ; the first such sentence is named. See ``batches``, too.
    """
    tolerance = TOLERANCE if exact else ROUGHLY
    same, differences = 0, []
    for size in SIZES:
        for sample in batches(system, translator.config["max_source_positions"], size, count):
            ours = translator.generate(sample)
            for sentence, theirs, own in zip(sample["id"].tolist(), system.hypotheses(sample), ours):
                equal, difference = likeness(theirs[0], own[0], exact)
                same += equal
                differences.append(difference)
                if exact and not difference <= tolerance:
                    raise ValueError(
                        f"sentence {sentence} in a batch of {size}: the exported model outputs "
                        f"'{translator.string(own[0]['tokens'])}' with score {own[0]['score']:.4f}, PyTorch "
                        f"'{translator.string(theirs[0]['tokens'].tolist())}' with {float(theirs[0]['score']):.4f}"
                    )
    mean = sum(differences) / len(differences)
    if not mean <= tolerance:
        raise ValueError(
            f"the scores of the exported model differ from PyTorch's by {mean:.2f} on average, more than {ROUGHLY}: "
            "its weights do not bear int8; export it without --int8"
        )
    return Agreement(len(differences), same, max(differences), mean)


def batches(system: System, longest: int, size: int, count: int) -> Iterator[Dict]:
    """Batches of the data's first sentences, in their order, that fit the model.

    Raises:
        ValueError: there is none.
    """
    fitting = [i for i in range(len(system.dataset)) if system.dataset.src_sizes[i] <= longest][:count]
    if not fitting:
        raise ValueError(
            f"no sentence of {system.cfg.dataset.gen_subset} fits the model's positions, and the exported model cannot "
            'be checked: name another split, --flags "--gen-subset NAME"'
        )
    for start in range(0, len(fitting), size):
        yield system.dataset.collater([system.dataset[i] for i in fitting[start : start + size]])


def likeness(theirs: Dict, own: Dict, exact: bool) -> tuple:
    """Whether two hypotheses have the same tokens, and how far their scores are apart: of the whole, and where
    ``exact`` with the same tokens of each."""
    difference = abs(float(theirs["score"]) - own["score"])
    equal = theirs["tokens"].tolist() == own["tokens"]
    if equal and exact:
        pairs: List = list(zip(theirs["positional_scores"].tolist(), own["positional_scores"]))
        difference = max(difference, *(abs(a - b) for a, b in pairs))
    return equal, difference
