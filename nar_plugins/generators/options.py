"""The table of the options that each generator serves, and the messages that refuse the others."""

import math
from argparse import Namespace
from dataclasses import fields
from typing import Callable, Iterable, NamedTuple, Optional, Set, Tuple

from fairseq.dataclass.configs import GenerationConfig

from nar_plugins.generators import registry
from nar_plugins.models.flags import flag


def refuse_foreign(config: Namespace, name: str) -> None:
    """Raise for an option of another generator that was set: it would be ignored."""
    served = {f.name for f in fields(registry.CONFIGS[name])}
    for other in registry.CONFIGS.values():
        for f in fields(other):
            if f.name in served or f.name.startswith("_"):
                continue
            if str(getattr(config, f.name)) != str(f.default):
                raise ValueError(f"{flag(f.name)} is no option of --generator {name}: leave it out")


def generation_options(args) -> Namespace:
    """fairseq's generation options, with its defaults for those that ``args`` lacks."""
    options = Namespace(**{f.name: f.default for f in fields(GenerationConfig) if f.name != "_name"})
    for name in vars(options):
        if hasattr(args, name):
            setattr(options, name, getattr(args, name))
    return options


# fairseq's options that no generator refuses
HONOURED = {
    "beam",
    "nbest",
    "print_step",
    "retain_iter_history",
    "sacrebleu",
    "no_seed_provided",
    "retain_dropout",
    "retain_dropout_modules",
    "no_early_stop",
    "no_beamable_mm",
    "iter_decode_with_external_reranker",
}
ALTERNATIVES = {  # fairseq's options that have another name or none here
    "iter_decode_max_iter": "--iterations counts all passes (fairseq's number plus one)",
    "iter_decode_force_max_iter": "--schedule linear never stops early",
    "iter_decode_with_beam": "use --length-beam",
    "iter_decode_eos_penalty": "it has no meaning here",
}
# further options that a generator serves; beam, fairseq's own search, serves all
ON_CANVAS = {"lenpen", "unnormalized", "max_len_a", "max_len_b", "min_len"}
FROM_LEFT = ON_CANVAS | {"unkpen", "temperature"}
SERVED = {"canvas": ON_CANVAS, "bang": FROM_LEFT, "blockwise": FROM_LEFT | {"prefix_size", "print_alignment"}}
INSTEAD_OF_BEAM = {
    "canvas": "use --length-beam {}",
    "bang": "use --bang-policy ar",
    "blockwise": "use --beam 1, or --generator beam",
}


class Refusal(NamedTuple):
    """An option or combination of options that a generator does not serve.

    Attributes:
        generators: their names; "canvas" is also all that ``SERVED`` does not name.
        refused: whether the options ask for it. Its argument has all options as attributes, and the caller's facts.
        message: a format string of these attributes.
    """

    generators: Tuple[str, ...]
    refused: Callable[[Namespace], bool]
    message: str


LEFT_TO_RIGHT, NAT = ("bang", "blockwise"), ("one_pass", "noisy_parallel")
ONE_OUTPUT = "{} cannot be honoured by --generator {{generator}}, which has one output: leave it out"
AT_LEAST_ONE = "{}: at least one token is needed"

# numbers that no generator can use, another engine's neither
NUMBERS = (
    Refusal(("any",), lambda o: o.beam < 1, "--beam {beam}: at least one hypothesis is needed"),
    Refusal(("any",), lambda o: o.nbest < 1, "--nbest {nbest}: at least one output is needed"),
    *(
        Refusal(
            ("any",),
            lambda o, name=name: not math.isfinite(getattr(o, name)),
            f"{flag(name)} {{{name}}}: choose a finite number",
        )
        for name in ("max_len_a", "lenpen", "temperature")
    ),
    Refusal(("any",), lambda o: math.isnan(o.unkpen), "--unkpen {unkpen}: choose a number"),
)
# decided by the options alone
OPTIONS = (
    Refusal(
        ("beam",),
        lambda o: o.replace_unk is not None,
        "--replace-unk cannot be honoured: fairseq fails at the first <unk> that is said; leave it out",
    ),
    Refusal(
        ("beam",),
        lambda o: o.score_reference and str(o.print_alignment) == "soft",
        "--print-alignment soft: --score-reference has hard alignments only",
    ),
    Refusal(LEFT_TO_RIGHT, lambda o: o.nbest != 1, ONE_OUTPUT.format("--nbest")),
    Refusal(LEFT_TO_RIGHT, lambda o: o.retain_dropout, ONE_OUTPUT.format("--retain-dropout")),
    Refusal(
        LEFT_TO_RIGHT,
        lambda o: o.iter_decode_with_external_reranker or o.rescorer is not None,
        ONE_OUTPUT.format("--iter-decode-with-external-reranker"),
    ),
    Refusal(
        ("beam", *LEFT_TO_RIGHT), lambda o: o.temperature <= 0, "--temperature {temperature}: choose a number above 0"
    ),
    Refusal(("blockwise",), lambda o: below(o.verify_block, 1), AT_LEAST_ONE.format("--verify-block {verify_block}")),
    Refusal(("blockwise",), lambda o: below(o.accept_top, 1), AT_LEAST_ONE.format("--accept-top {accept_top}")),
    Refusal(("blockwise",), lambda o: o.min_block < 1, AT_LEAST_ONE.format("--min-block {min_block}")),
    Refusal(
        ("blockwise",),
        lambda o: o.drafter_iterations < 1,
        "--drafter-iterations {drafter_iterations}: at least one pass of the drafter is needed",
    ),
    Refusal(
        ("blockwise",),
        lambda o: below(o.draft_vocab_size, 1),
        AT_LEAST_ONE.format("--draft-vocab-size {draft_vocab_size}"),
    ),
    Refusal(
        ("blockwise",),
        lambda o: below(o.verify_block, o.min_block),
        "--min-block {min_block}: no more than --verify-block {verify_block} can be accepted",
    ),
    Refusal(("blockwise",), lambda o: below(o.accept_gap, 0), "--accept-gap {accept_gap}: choose a number from 0 up"),
    Refusal(
        ("blockwise",),
        lambda o: str(o.accept) == "exact" and (o.accept_top, o.accept_gap) != (None, None),
        "--accept-top and --accept-gap need --accept top",
    ),
    Refusal(
        ("bang",), lambda o: below(o.bang_block, 1), "--bang-block {bang_block}: at least one token a pass is needed"
    ),
    Refusal(("bang",), lambda o: o.bang_prefix < 0, "--bang-prefix {bang_prefix}: choose a number from 0 up"),
    Refusal(
        ("bang",),
        lambda o: below(o.bang_tau, 0),
        "--bang-tau {bang_tau}: choose a probability; above 1 is one token a pass",
    ),
    Refusal(
        ("bang",),
        lambda o: not o.bang_min_score <= 0,
        "--bang-min-score {bang_min_score}: a mean log-probability is at most 0",
    ),
    Refusal(
        ("bang",),
        lambda o: o.bang_release_output and str(o.dedup) != "none",
        "--bang-release-output drops repeated tokens and words by itself: leave --dedup out",
    ),
    Refusal(
        ("canvas",),
        lambda o: o.compile and str(o.decode_dtype) == "int8",
        "--compile: --decode-dtype int8 has kernels of its own, which are not compiled: leave one out",
    ),
    Refusal(
        ("canvas",),
        lambda o: o.compile and o.retain_dropout,
        "--compile: --retain-dropout would drop other units than without it: leave one out",
    ),
)
# decided by the options and the models
MODELS = (
    Refusal(
        ("mask_predict",),
        lambda o: not 0 <= o.confidence_threshold <= 1,
        "--confidence-threshold {confidence_threshold}: choose a probability, from 0 to 1",
    ),
    Refusal(
        ("mask_predict",),
        lambda o: (
            str(o.schedule) != "confidence" and o.confidence_threshold != registry.default_of("confidence_threshold")
        ),
        "--confidence-threshold is not read by --schedule {schedule}: give --schedule confidence",
    ),
    Refusal(("canvas",), lambda o: o.beams < 1, "--length-beam {beams}: at least one length must be tried"),
    Refusal(
        ("mask_predict",),
        lambda o: o.iterations < 1,
        "--iterations {iterations}: at least one pass of the decoder is needed",
    ),
    Refusal(
        ("canvas",),
        lambda o: not 0 <= o.length_weight < math.inf,
        "--length-weight {length_weight}: choose a number from 0 up",
    ),
    Refusal(
        ("canvas",),
        lambda o: o.predicts != "lengths" and o.length_weight != 0,
        "--length-weight: these models predict no length; leave it out",
    ),
    Refusal(
        NAT,
        lambda o: o.predicts != "lengths" and o.length_beam is not None,
        "--length-beam: these models predict no length; leave it out",
    ),
    Refusal(
        NAT,
        lambda o: o.predicts != "lengths" and o.min_len > 1,
        "--min-len cannot be honoured: these models predict no length; leave it out",
    ),
    Refusal(
        NAT,
        lambda o: o.predicts != "lengths" and o.gold_length,
        "--gold-length: these models predict no length; leave it out",
    ),
    Refusal(
        NAT,
        lambda o: o.blank is not None and (o.max_len_a, o.max_len_b) != (0, 200),
        "--max-len-a/b cannot be honoured: CTC's canvas is as long as --upsample says; leave them out",
    ),
    *(
        Refusal(
            ("dag",),
            lambda o, differs=differs: str(o.dag_decode) in ("lookahead", "greedy") and differs(o),
            name + ": --dag-decode {dag_decode} has one path; give viterbi or joint-viterbi, or leave it out",
        )
        for name, differs in (
            ("--length-beam", lambda o: o.length_beam is not None),
            ("--gold-length", lambda o: o.gold_length),
            ("--min-len", lambda o: o.min_len > 1),
            ("--max-len-a/b", lambda o: (o.max_len_a, o.max_len_b) != (0, 200)),
        )
    ),
    Refusal(("one_pass",), lambda o: o.ctc_beam < 1, "--ctc-beam {ctc_beam}: at least one output is needed"),
    Refusal(
        ("one_pass",),
        lambda o: o.ctc_beam > 1 and o.blank is None,
        "--ctc-beam: these models were not trained with --ctc; leave it out",
    ),
    Refusal(
        ("one_pass",),
        lambda o: str(o.fertility) != "argmax" and o.predicts != "fertilities",
        "--fertility: these models have no fertilities; leave it out",
    ),
    Refusal(
        ("noisy_parallel",),
        lambda o: not o.rescored,
        "--generator noisy_parallel needs an autoregressive model to choose: give --rescorer CKPT",
    ),
    Refusal(
        ("noisy_parallel",),
        lambda o: o.fertility_samples < 1,
        "--fertility-samples {fertility_samples}: at least one candidate is needed",
    ),
    Refusal(
        ("blockwise",),
        lambda o: o.print_alignment and o.full_context,
        "--print-alignment of a model with full-context alignment: use --generator beam",
    ),
    Refusal(
        ("blockwise",),
        lambda o: o.draft_vocab_size is not None and not o.heads,
        "--draft-vocab-size is for the proposal heads of a blockwise checkpoint: leave it out",
    ),
    Refusal(
        ("blockwise",),
        lambda o: o.verify_block is not None and o.verify_block > o.max_block,
        "--verify-block {verify_block}: these proposals are for blocks of at most {max_block} tokens",
    ),
    Refusal(
        ("blockwise",),
        lambda o: o.min_block > o.max_block,
        "--min-block {min_block}: these proposals are for blocks of at most {max_block} tokens",
    ),
    Refusal(("blockwise",), lambda o: o.top > o.symbols, "--accept-top {top}: the dictionary has {symbols} symbols"),
)
# decided by the options and a batch
BATCHES = (
    Refusal(
        ("beam",),
        lambda o: o.score_reference and not o.targets,
        "--score-reference needs references, and fairseq-interactive has none: use fairseq-generate",
    ),
    Refusal(
        ("beam",),
        lambda o: o.constraints and not o.constrained,
        "--constraints are read from the lines of fairseq-interactive: leave it out of fairseq-generate",
    ),
    Refusal(
        ("blockwise",),
        lambda o: o.constrained,
        "--constraints cannot be honoured by --generator blockwise: use --generator beam",
    ),
    Refusal(
        ("bang",),
        lambda o: o.prefixed or o.constrained,
        "--prefix-size and --constraints cannot be honoured by --generator bang: use --bang-policy ar",
    ),
    Refusal(
        ("canvas",),
        lambda o: o.prefixed or o.constrained,
        "{generator} takes no prefix and no constraints: leave out --prefix-size and --constraints",
    ),
)
# decided by the options of fairseq-interactive, which accepts them all, reads no references, and prints pairs
INTERACTIVE = (
    Refusal(
        ("any",),
        lambda o: o.prefix_size > 0,
        "--prefix-size {prefix_size}: fairseq-interactive has no references; leave it out",
    ),
    Refusal(
        ("any",),
        lambda o: str(o.print_alignment) == "soft",
        "--print-alignment soft: fairseq-interactive prints hard alignments only; use fairseq-generate",
    ),
)


def below(value: Optional[float], bound: float) -> bool:
    """Whether an option is set and below its bound, or NaN."""
    return value is not None and not value >= bound


def refuse(rules: Iterable[Refusal], generator: str, *given: Namespace, bases: Iterable[str] = (), **facts) -> None:
    """Raise for the first rule that refuses the options.

    Args:
        bases: names of the generators that it is a subclass of; their rules apply too.
        given: fairseq's options, and the generator's. facts: further attributes that the rules read.

    Raises:
        ValueError: names the option.
    """
    values = {name: value for options in given for name, value in vars(options).items()}
    values = Namespace(**{**values, **facts, "generator": generator})
    names = {generator, kind_of(generator), *bases}
    for rule in rules:
        if names.intersection(rule.generators) and rule.refused(values):
            raise ValueError(rule.message.format(**vars(values)))


def kind_of(generator: str) -> str:
    """The name of a generator in the table."""
    return generator if generator in (*SERVED, "beam", "any") else "canvas"


def refuse_options(
    generator: str, options: Namespace, config: Namespace, rescorer=None, honoured: Optional[Set[str]] = None
) -> None:
    """Raise for the first option that a generator does not serve, whatever the models are.

    Args:
        rescorer: the model of ``--rescorer``, or None.
        honoured: fairseq's options that it serves; None: those of ``SERVED``.
    """
    refuse(NUMBERS, "any", options)
    kind = kind_of(generator)
    if kind in SERVED:
        refuse_unserved(options, generator, SERVED[kind] if honoured is None else honoured, INSTEAD_OF_BEAM[kind])
    refuse(OPTIONS, generator, options, config, rescorer=rescorer)


def refuse_in_batch(generator: str, options: Namespace, prefix, constraints, target=None) -> None:
    """Raise where a generator does not serve a batch's prefix, constraints or lack of targets (None: it has none)."""
    facts = dict(prefixed=prefix is not None, constrained=constraints is not None, targets=target is not None)
    refuse(BATCHES, generator, options, **facts)


def refuse_unserved(options: Namespace, generator: str, honoured: set, instead: str = "use --length-beam {}") -> None:
    """Raise for the first of fairseq's options that is set and that ``generator`` does not honour.

    ``--beam`` is 5 by default and a typed 5 looks the same, so only values other than 1 and 5 can be refused.

    Args:
        instead: the advice for ``--beam``, a format string of its value.

    Raises:
        ValueError: names the option.
    """
    if options.beam not in (1, 5):
        raise ValueError(f"--beam {options.beam}: {generator} has no beam; {instead.format(options.beam)}")
    for f in fields(GenerationConfig):
        value = getattr(options, f.name, f.default)
        if f.name.startswith("_") or f.name in HONOURED | honoured or value == f.default:
            continue
        hint = ALTERNATIVES.get(f.name, "leave it out")
        raise ValueError(f"{flag(f.name)} cannot be honoured by --generator {generator}: {hint}")
