"""Every flag of fairseq's that stands before our models: it works, or it is refused by one line that names it.

Each is tried with another value than its default on every kind of model, for three updates and one decoding; the stock
Transformer beside them is the control. A flag that fairseq adds fails ``test_every_flag_is_classified`` until it has a
row.
"""

import argparse
import copy
import functools
from types import SimpleNamespace
from typing import Dict, List, NamedTuple, Tuple

import pytest
import tiny
import torch
from conftest import preprocess, random_sentences, write_pairs
from fairseq import options
from fairseq.data import LanguagePairDataset, ListDataset
from fairseq.dataclass.configs import CommonConfig, DatasetConfig, EMAConfig, OptimizationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, gen_parser_from_dataclass
from fairseq.models.transformer import TransformerModel
from fairseq.tasks.translation import TranslationConfig
from fairseq.trainer import Trainer
from in_process import here, refusal

from nar_plugins.models import base as nar_base
from nar_plugins.models.contract import Canvas
from nar_plugins.tasks.translation import NarTranslationTask

# what a flag does to a model; what fairseq cannot do with its own, or not to the last bit, is not tried
CHANGES, SAME, BOUNDS, REFUSED, UNTRIED = "changes", "same to the last bit", "other bounds", "refused", "untried"

FORMS = {
    "transformer": ("--arch=transformer_tiny", "--criterion=cross_entropy"),
    "cmlm": ("--arch=cmlm_tiny", "--criterion=nar_loss", "--iterations=2"),
    "nat": ("--arch=nat_tiny", "--criterion=nar_loss"),
    "soft": ("--arch=nat", "--criterion=nar_loss", "--source-copy=soft"),
    "ctc": ("--arch=nat_tiny", "--criterion=nar_loss", "--ctc", "--glancing=0.5"),
    "dag": ("--arch=dag_tiny", "--criterion=nar_loss", "--upsample=2", "--glancing=0.5"),
    "blockwise": ("--arch=blockwise_tiny", "--criterion=blockwise_loss", "--block-loss=mean"),
    "sequential": (
        "--arch=blockwise_tiny",
        "--criterion=blockwise_loss",
        "--block-loss=mean",
        "--block-head=sequential",
    ),
    "bang": ("--arch=bang_tiny", "--criterion=bang_loss"),
}
OURS = tuple(form for form in FORMS if form != "transformer")
NAT, BLOCKWISE, STOCK = ("nat", "soft", "ctc"), ("blockwise", "sequential"), ("transformer",)
SIZES = [
    f"--{side}-{size}"
    for side in ("encoder", "decoder")
    for size in ("embed-dim=16", "ffn-embed-dim=32", "attention-heads=2", "layers=2")
]


class Row(NamedTuple):
    """What is expected of a flag: of every form, but for the exceptions."""

    value: str = ""
    expected: str = CHANGES
    exceptions: Dict[Tuple[str, ...], str] = {}
    beside: Tuple[str, ...] = ()  # flags without which it means nothing; they are in the baseline, too

    def of(self, form: str) -> str:
        return next((outcome for forms, outcome in self.exceptions.items() if form in forms), self.expected)


def refused(value: str = "", stock: str = SAME, **kwargs) -> Row:
    """A flag that every model of ours refuses."""
    return Row(value, REFUSED, {STOCK: stock}, **kwargs)


BANG_REFUSES = {("bang",): REFUSED}
MODEL_FLAGS = {
    "--activation-fn": Row("tanh"),
    "--dropout": Row("0.3"),
    "--attention-dropout": Row("0.3"),
    "--activation-dropout": Row("0.3"),
    "--relu-dropout": Row("0.3"),
    "--encoder-embed-path": Row("EMBEDDINGS", CHANGES, BANG_REFUSES),
    "--decoder-embed-path": Row(
        "EMBEDDINGS", CHANGES, {("bang", "nat", "soft"): REFUSED}
    ),  # no token is read without glancing
    "--encoder-embed-dim": Row("24", CHANGES, {(*NAT, "bang"): REFUSED}),
    "--decoder-embed-dim": Row("24", CHANGES, {(*NAT, "bang"): REFUSED}),
    "--encoder-ffn-embed-dim": Row("24"),
    "--decoder-ffn-embed-dim": Row("24"),
    "--encoder-layers": Row("1", CHANGES, {("nat", "ctc"): REFUSED}),  # layer-wise attention
    "--decoder-layers": Row("1", CHANGES, {("nat", "ctc"): REFUSED}),
    "--encoder-attention-heads": Row("4"),
    "--decoder-attention-heads": Row("4"),
    "--encoder-normalize-before": Row("", CHANGES, BANG_REFUSES),
    "--decoder-normalize-before": Row("", CHANGES, BANG_REFUSES),
    "--no-decoder-final-norm": Row("", CHANGES, BANG_REFUSES, ("--decoder-normalize-before",)),
    "--encoder-learned-pos": Row("", CHANGES, {("cmlm", "dag", "bang"): SAME}),  # as it is
    "--decoder-learned-pos": Row("", CHANGES, {("cmlm", "dag", "bang"): SAME}),
    "--no-token-positional-embeddings": Row("", CHANGES, {("nat", "ctc", "bang"): REFUSED}),
    "--layernorm-embedding": Row("", CHANGES, {("bang",): SAME}),
    "--no-scale-embedding": Row("", CHANGES, {("cmlm", "bang"): SAME}),
    "--encoder-layerdrop": Row("0.5"),
    "--decoder-layerdrop": Row("0.5", CHANGES, {("cmlm", "dag", *NAT, "bang"): REFUSED}),
    "--encoder-layers-to-keep": refused("[1]", stock=UNTRIED),  # what prunes is --model-overrides
    "--decoder-layers-to-keep": refused("[1]", stock=UNTRIED),
    "--encoder-xformers-att-config": refused("{}", stock=UNTRIED),
    "--decoder-xformers-att-config": refused("{}", stock=UNTRIED),
    "--max-source-positions": Row("40", BOUNDS),
    "--max-target-positions": Row("90", BOUNDS),
    "--decoder-output-dim": Row("24", CHANGES, BANG_REFUSES),
    "--share-decoder-input-output-embed": Row("", CHANGES, {("bang",): SAME}),
    "--share-all-embeddings": Row("", CHANGES, {("bang",): SAME}),
    "--merge-src-tgt-embed": refused(stock=REFUSED),
    "--checkpoint-activations": Row("", SAME, {STOCK: UNTRIED}),
    "--offload-activations": Row("", SAME, {STOCK: UNTRIED}),
    "--export": Row("", SAME),  # what it asks for is so on CPUs
    "--quant-noise-pq": Row("0.2", CHANGES, {(*NAT, "bang"): REFUSED}),
    "--quant-noise-pq-block-size": Row("4", CHANGES, {(*NAT, "bang"): REFUSED}, ("--quant-noise-pq=0.2",)),
    "--quant-noise-scalar": refused("0.2", stock=UNTRIED),
    "--min-params-to-wrap": Row("10", REFUSED, {(*STOCK, *BLOCKWISE): SAME}),  # of fully sharded training
    "--adaptive-input": refused(),
    "--adaptive-softmax-cutoff": refused("[10]", stock=UNTRIED),  # with this criterion
    "--adaptive-softmax-dropout": refused("0.3"),
    "--adaptive-softmax-factor": refused("2"),
    "--tie-adaptive-weights": refused(),
    "--tie-adaptive-proj": refused(),
    "--no-cross-attention": refused(stock=CHANGES),
    "--cross-self-attention": refused(stock=CHANGES),
    "--char-inputs": refused(),
    "--base-layers": refused("1", stock=UNTRIED),
    "--base-sublayers": refused("2"),
    "--base-shuffle": refused("0"),
}
TASK_FLAGS = {
    "--load-alignments": refused(),
    "--left-pad-source": Row("", SAME),  # padding is on the right, whatever is asked for
    "--left-pad-target": Row("", SAME),
}
TRAINER_FLAGS = {
    "--update-freq": Row("2"),
    "--clip-norm": Row("0.1"),
    "--sentence-avg": refused(stock=CHANGES),
    "--store-ema": Row("", SAME),  # see test_the_average_of_the_weights
    "--quantization-config-path": refused("none.yaml"),
}
FLAGS = {**MODEL_FLAGS, **TASK_FLAGS, **TRAINER_FLAGS}

# what no model sees: files, batches, precision, the optimizer, logs; each is fairseq's own, or has tests elsewhere
ELSEWHERE = set(
    """
    --source-lang --target-lang --upsample-primary --truncate-source --num-batch-buckets
    --eval-bleu --eval-bleu-args --eval-bleu-detok --eval-bleu-detok-args --eval-tokenized-bleu --eval-bleu-remove-bpe
    --eval-bleu-print-samples

    --max-epoch --max-update --stop-time-hours --lr --stop-min-lr --use-bmuf --skip-remainder-batch --debug-param-names

    --ema-decay --ema-start-update --ema-seed-model --ema-update-freq --ema-fp32

    --num-workers --skip-invalid-size-inputs-valid-test --max-tokens --batch-size --required-batch-size-multiple
    --required-seq-len-multiple --dataset-impl --data-buffer-size --train-subset --valid-subset --combine-valid-subsets
    --ignore-unused-valid-subsets --validate-interval --validate-interval-updates --validate-after-updates
    --fixed-validation-seed --disable-validation --max-tokens-valid --batch-size-valid --max-valid-steps --curriculum
    --gen-subset --num-shards --shard-id --grouped-shuffling --update-epoch-batch-itr --update-ordered-indices-seed

    --no-progress-bar --log-interval --log-format --log-file --aim-repo --aim-run-hash --tensorboard-logdir
    --wandb-project --azureml-logging --seed --cpu --tpu --bf16 --memory-efficient-bf16 --fp16 --memory-efficient-fp16
    --fp16-no-flatten-grads
    --fp16-init-scale --fp16-scale-window --fp16-scale-tolerance --on-cpu-convert-precision --min-loss-scale
    --threshold-loss-scale --amp --amp-batch-retries --amp-init-scale --amp-scale-window --user-dir --empty-cache-freq
    --all-gather-list-size --model-parallel-size --profile --reset-logging --suppress-crashes --use-plasma-view
    --plasma-path
""".split()
)


@functools.lru_cache(maxsize=None)
def flags_of_fairseq() -> frozenset:
    """The first name of every flag of the installed fairseq that a model, the task or the trainer may read."""
    parser = argparse.ArgumentParser(add_help=False)
    TransformerModel.add_args(parser)
    for config in (TranslationConfig, OptimizationConfig, EMAConfig, DatasetConfig, CommonConfig):
        gen_parser_from_dataclass(parser, config())
    return frozenset(action.option_strings[0] for action in parser._actions if action.option_strings)


def test_every_flag_is_classified():
    new = flags_of_fairseq() - FLAGS.keys() - ELSEWHERE
    assert not new, "give each of them a row here, and see that every model honours or refuses it"
    assert not FLAGS.keys() & ELSEWHERE


# -- three updates and a decoding
# ----------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    losses: List[float]  # of every update
    weights: List[Dict[str, torch.Tensor]]  # by name, before the first update and after every one
    without_gradient: List[str]  # parameters that are to be trained, and got none in any update
    texts: list  # what is decoded: tokens and score of every sentence
    bounds: tuple
    trainer: Trainer


def arguments(form: str, flags) -> argparse.Namespace:
    """What fairseq-train's parser makes of them."""
    given = [
        "data",
        "--task=nar_translation",
        "--optimizer=adam",
        "--lr=0.01",
        "--cpu",
        "--dropout=0",
        *SIZES,
        *FORMS[form],
    ]
    return options.parse_args_and_arch(options.get_training_parser("nar_translation"), [*given, *flags])


@pytest.fixture(scope="module")
def configured():
    """A function form, flags -> fairseq's configuration; it is composed once a criterion, which takes half a second."""
    made = {}

    def configure(form: str, flags):
        criterion = FORMS[form][1]
        if criterion not in made:
            plain = arguments(form, [])
            made[criterion] = plain, convert_namespace_to_omegaconf(copy.deepcopy(plain))
        plain, composed = made[criterion]
        args = arguments(form, flags)
        config = SimpleNamespace(**{**{name: composed[name] for name in composed}, "model": args})
        for name in ("task", "criterion", "optimization", "common", "dataset", "ema", "generation"):
            group = copy.deepcopy(getattr(config, name))
            for key in vars(args).keys() & group.keys():
                if getattr(args, key) != getattr(plain, key, None):
                    group[key] = getattr(args, key)
            setattr(config, name, group)
        config.generation.update(beam=1, **({} if form in ("ctc", "dag") else {"max_len_a": 0, "max_len_b": 12}))
        return config

    return configure


def batch(task, model, seed: int) -> dict:
    """Four sentences and their reverses, as the task collates them."""
    rng, eos = torch.Generator().manual_seed(seed), torch.tensor([2])
    words = [torch.randint(4, 24, (n,), generator=rng) for n in (3, 5, 2, 6)]
    sides = (
        [torch.cat([sentence, eos]) for sentence in words],
        [torch.cat([sentence.flip(0), eos]) for sentence in words],
    )
    (source, target), sizes = map(ListDataset, sides), [len(sentence) for sentence in sides[0]]
    pairs = LanguagePairDataset(
        source, sizes, task.source_dictionary, target, sizes, task.target_dictionary, left_pad_source=False
    )
    sample = pairs.collater([pairs[i] for i in range(len(words))])
    if getattr(model, "needs_fertilities", False):
        sample["net_input"]["fertilities"] = sample["net_input"]["src_tokens"].ne(1).long()
    return sample


def decode(task, model, config, sample) -> list:
    found = task.inference_step(task.build_generator([model.eval()], config.generation), [model], sample)
    return [(best["tokens"].tolist(), round(float(best["score"]), 6)) for best, *_ in found]


@pytest.fixture(scope="module")
def tried(configured):
    """A function form, flags -> its ``Outcome``; remembered where it is a baseline."""
    remembered = {}

    def attempt(form: str, flags=(), remember: bool = False) -> Outcome:
        if (form, *flags) in remembered:
            return remembered[(form, *flags)]
        config = configured(form, flags)
        task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
        torch.manual_seed(1)
        model = task.build_model(config.model)
        trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
        samples = [batch(task, model, seed) for seed in range(3)]
        losses, weights, trained = [], [snapshot(model)], set()
        for update in range(3):
            batches = (samples[update:] + samples[:update])[: config.optimization.update_freq[0]]
            losses.append(trainer.train_step(batches)["loss"])
            weights.append(snapshot(model))
            trained |= {name for name, p in model.named_parameters() if p.grad is not None}
        idle = [name for name, p in model.named_parameters() if p.requires_grad and name not in trained]
        outcome = Outcome(
            losses, weights, idle, decode(task, model, config, samples[0]), model.max_positions(), trainer
        )
        if remember:
            remembered[(form, *flags)] = outcome
        return outcome

    return attempt


def snapshot(model) -> Dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(one: Outcome, other: Outcome) -> bool:
    """Whether all weights are, after every update, and the decoded texts with their scores."""
    if any(a.keys() != b.keys() for a, b in zip(one.weights, other.weights)):
        return False
    return one.texts == other.texts and all(
        torch.equal(a[name], b[name]) for a, b in zip(one.weights, other.weights) for name in a
    )


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Pre-trained embeddings of half of the words, 16 wide."""
    path, rng = tmp_path_factory.mktemp("embeddings") / "words.txt", torch.Generator().manual_seed(3)
    rows = [f"w{i} " + " ".join(f"{x:.3f}" for x in torch.randn(16, generator=rng).tolist()) for i in range(10)]
    path.write_text("\n".join(["10 16", *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "flag, form", [(flag, form) for flag in FLAGS for form in FORMS if FLAGS[flag].of(form) != UNTRIED]
)
def test_a_flag_works_or_is_refused(flag, form, tried, embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where fairseq may leave a crash.pt
    if flag not in flags_of_fairseq():
        pytest.skip("this fairseq has no such flag")
    row = FLAGS[flag]
    value = row.value.replace("EMBEDDINGS", str(embeddings))
    given, expected = f"{flag}={value}" if value else flag, row.of(form)
    if expected == REFUSED:
        with pytest.raises(ValueError) as error:
            tried(form, [given])
        assert flag in str(error.value) and "\n" not in str(error.value)
        return
    outcome, plain = tried(form, [*row.beside, given]), tried(form, row.beside, remember=True)
    assert all(loss < 1e4 for loss in outcome.losses)  # NaN is not
    if "layerdrop" not in flag and form in OURS:
        assert not outcome.without_gradient  # data-parallel training would wait for them
    assert (outcome.bounds != plain.bounds) == (expected == BOUNDS or (flag, form) == ("--decoder-learned-pos", "ctc"))
    if expected != BOUNDS:
        assert equal(outcome, plain) == (expected == SAME)


# -- the right values
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", OURS)
def test_checkpointed_activations_change_nothing_in_half_precision_either(form, tried):
    """With dropout in every place, and under autocast, which fairseq's own checkpoints leave in the backward pass."""
    flags = ("--train-dtype=bfloat16", "--dropout=0.2", "--attention-dropout=0.2", "--activation-dropout=0.2")
    plain = tried(form, flags)
    assert not equal(plain, tried(form, remember=True))
    for flag in ("--checkpoint-activations", "--offload-activations"):
        assert equal(tried(form, [*flags, flag]), plain)


@pytest.mark.parametrize("form", OURS)
def test_a_checkpointed_layer_is_computed_twice(form, configured):
    """So the flag does what it is for: nothing but a layer's arguments is kept."""
    config = configured(form, ["--checkpoint-activations"])
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    model = task.build_model(config.model)
    asked = {side: 0 for side in ("encoder", "decoder")}

    def count(side):
        def hook(*_):
            asked[side] += 1

        return hook

    for side in asked:
        getattr(model, side).layers[0].fc1.register_forward_hook(count(side))
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    trainer.train_step([batch(task, model, 0)])
    assert asked == {
        "encoder": 2,
        "decoder": 3 if form in ("ctc", "dag") else 2,
    }  # the first pass of glancing has no gradient


@pytest.mark.parametrize("form", OURS)
def test_offloading_moves_the_arguments_of_the_layers_alone(form, configured, monkeypatch):
    """Seen from the hooks that would move them to the CPU, which on a CPU is no move."""
    moved = []

    def noted():
        return torch.autograd.graph.saved_tensors_hooks(lambda x: moved.append(x) or x, lambda x: x)

    monkeypatch.setattr(nar_base, "save_on_cpu", noted)
    config = configured(form, ["--offload-activations"])
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    model = task.build_model(config.model)
    given = []
    for layer in (*model.encoder.layers, *model.decoder.layers):
        recorded = layer.forward.args[0]
        layer.forward = functools.partial(layer.forward.func, noting(recorded, given), *layer.forward.args[1:])
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    trainer.train_step([batch(task, model, 0)])
    places = {x.data_ptr() for x in moved if x.numel()}
    assert places and places <= {x.data_ptr() for x in given}
    assert given[0].data_ptr() in places  # the first layer's states


def noting(forward, given: list):
    """``forward`` that keeps its tensors in ``given``."""

    def call(*args, **kwargs):
        given.extend(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        return forward(*args, **kwargs)

    return call


@pytest.mark.parametrize("form", FORMS)
def test_the_average_of_the_weights(form, tried, configured):
    """--store-ema: a copy of the model that decodes by its own weights, also where its layers are checkpointed."""
    flags = ["--store-ema", "--ema-decay=0.5", "--checkpoint-activations"]
    outcome = tried(form, flags)
    average = outcome.weights[1]  # fairseq makes the copy after the first update
    for weights in outcome.weights[2:]:
        average = {name: value.lerp(weights[name], 0.5) for name, value in average.items()}
    copied = outcome.trainer.ema.get_model()
    for name, p in copied.named_parameters():
        if form == "bang" and name.endswith("embed_tokens.weight"):
            continue  # fairseq averages a shared table once for each of its three names
        torch.testing.assert_close(p.detach(), average[name], rtol=0, atol=1e-6)

    task, config = outcome.trainer.task, configured(form, flags)
    other = task.build_model(config.model)
    other.load_state_dict(copied.state_dict())
    sample = batch(task, other, 0)
    assert decode(task, copied, config, sample) == decode(task, other, config, sample)


def test_the_embedding_projection_of_quantization_noise_is_fairseqs():
    flags = ("--quant-noise-pq", "0.1", "--layernorm-embedding", "--share-all-embeddings", *SIZES)
    ours, _ = tiny.model(*flags, arch="cmlm")
    stock, _ = tiny.model(*flags, arch="transformer", criterion="cross_entropy", seed=2)
    own = [key for key in ours.state_dict() if "length_head" in key]
    stock.load_state_dict({key: value for key, value in ours.state_dict().items() if key not in own})
    ours.eval(), stock.eval()
    sample = batch(tiny.task(), ours, 0)
    source, canvas = sample["net_input"]["src_tokens"], sample["target"]
    with torch.no_grad():
        mine = ours.decode(Canvas(canvas, canvas.eq(1)), ours.encode(source))
        encoded = stock.encoder(source, src_lengths=source.ne(1).sum(1))
        theirs, _ = stock.decoder.extract_features(canvas, encoded, full_context_alignment=True)
    real = canvas.ne(1)
    torch.testing.assert_close(mine[real], theirs[real], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ours.decoder.quant_noise.weight.zero_()
        assert not torch.allclose(ours.decode(Canvas(canvas, ~real), ours.encode(source))[real], mine[real])


@pytest.mark.parametrize("form", ["nat", "cmlm"])
def test_the_state_of_a_dropped_encoder_layer_is_what_it_was_given(form):
    arch = FORMS[form][0].split("=")[1]
    flags = ("--encoder-layerdrop=0.5", "--dropout=0", "--encoder-layers=3", "--decoder-layers=3")
    model, its_task = tiny.model(*flags, arch=arch)
    encoder, source = model.encoder, batch(its_task, model, 0)["net_input"]["src_tokens"]
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        kept = (torch.empty(3).uniform_() > 0.5).tolist()  # as LayerDrop draws
        torch.manual_seed(seed)
        out = encoder(source, return_all_hiddens=True)
        first = encoder.forward_embedding(source)[0].masked_fill(source.eq(1).unsqueeze(-1), 0)
        padding = source.eq(1)
        if form == "cmlm":
            first, padding = (
                torch.cat([encoder.length_head.token(4), first], 1),
                torch.nn.functional.pad(padding, (1, 0)),
            )
        expected = [first.transpose(0, 1)]
        for layer, there in zip(encoder.layers.children(), kept):
            expected.append(layer(expected[-1], encoder_padding_mask=padding) if there else expected[-1])
        expected = [state[1:] if form == "cmlm" else state for state in expected]
        assert len(out["encoder_states"]) == 4
        assert all(torch.equal(a, b) for a, b in zip(out["encoder_states"], expected))
        assert torch.equal(out["encoder_out"][0], expected[-1])
        seen.add(tuple(kept))
    assert len(seen) > 3


@pytest.mark.parametrize("form", OURS)
def test_a_pruned_model_has_the_layers_that_are_kept(form, configured, tried):
    """--model-overrides "{'encoder_layers_to_keep': '1', 'decoder_layers_to_keep': '1'}", as fairseq loads a
    checkpoint.
    """
    config = configured(form, [])
    whole = tried(form, remember=True).trainer.get_model()
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    config.model.encoder_layers_to_keep = config.model.decoder_layers_to_keep = "1"
    pruned = task.build_model(config.model, from_checkpoint=True)
    pruned.load_state_dict(whole.state_dict(), strict=True, model_cfg=config.model)
    for side in ("encoder", "decoder"):
        (kept,) = getattr(pruned, side).layers
        stored = getattr(whole, side).layers[1].state_dict()
        assert all(torch.equal(value, stored[name]) for name, value in kept.state_dict().items())
    assert len(decode(task, pruned, config, batch(task, pruned, 0))) == 4


def test_layerwise_attention_counts_the_layers_that_are_kept(configured):
    config = configured("nat", [])
    config.model.encoder_layers_to_keep = "1"
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    with pytest.raises(ValueError, match=r"as many --encoder-layers \(1\) as --decoder-layers \(2\)"):
        task.build_model(config.model, from_checkpoint=True)


def test_the_length_token_is_dropped_out_with_the_words():
    """Mask-Predict's ``TransformerEncoder.forward`` puts it in front of them and then drops out everything."""
    model, its_task = tiny.model("--dropout", "0.4", arch="cmlm_tiny")
    given = []
    model.encoder.layers[0].register_forward_pre_hook(lambda layer, inputs: given.append(inputs[0][0]))
    source = batch(its_task, model, 0)["net_input"]["src_tokens"].repeat(50, 1)
    model.encoder(source)
    zeros = given[0].eq(0)
    assert 0.35 < float(zeros.float().mean()) < 0.45
    wanted = model.encoder.length_head.weight[0].expand(200, -1) / 0.6
    torch.testing.assert_close(given[0][~zeros], wanted[~zeros])
    model.eval()(source, None, source, source)
    assert torch.equal(given[1], model.encoder.length_head.weight[0].expand(200, -1))


@pytest.mark.parametrize("form", ["cmlm", "soft"])
def test_given_embeddings_survive_the_initialisation(form, embeddings, configured):
    sides = ("encoder", "decoder") if form == "cmlm" else ("encoder",)
    config = configured(form, [f"--{side}-embed-path={embeddings}" for side in sides])
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    model = task.build_model(config.model)
    for side in (getattr(model, name) for name in sides):
        for line in embeddings.read_text().splitlines()[1:]:
            word, *values = line.split()
            row = side.embed_tokens.weight[side.dictionary.index(word)]
            assert row.tolist() == pytest.approx([float(value) for value in values], abs=1e-6)


@pytest.mark.parametrize("form", OURS)
def test_an_output_of_another_width_than_the_embeddings_it_shares_is_refused(form, tried):
    with pytest.raises(ValueError, match="^--decoder-output-dim 24: .* 16 wide"):
        tried(form, ["--share-decoder-input-output-embed", "--decoder-output-dim=24"])


def test_what_was_trained_with_a_flag_that_nothing_reads_still_decodes(configured):
    config = configured("cmlm", ["--tie-adaptive-weights", "--sentence-avg"])
    task = NarTranslationTask(config.task, tiny.dictionary(), tiny.dictionary())
    model = task.build_model(config.model, from_checkpoint=True)
    assert len(decode(task, model, config, batch(task, model, 0))) == 4


# -- through the real commands
# ---------------------------------------------------------------------------------------------


def test_the_real_commands(tmp_path):
    """A handful of flags together, whose batches, padding and copies the trials above do not have."""
    pairs = [(sentence, sentence) for sentence in random_sentences(60, seed=1)]
    for split in ("train", "valid", "test"):
        write_pairs(tmp_path / "raw", pairs[:40], split)
    data = preprocess(tmp_path / "raw", tmp_path / "bin")
    train = [
        "fairseq-train",
        data,
        "--task=nar_translation",
        "--arch=nat_tiny",
        "--criterion=nar_loss",
        "--source-copy=uniform",
        "--optimizer=adam",
        "--lr=0.001",
        "--max-tokens=100",
        "--max-update=3",
        "--cpu",
        "--no-progress-bar",
        *SIZES,
        "--update-freq=2",
        "--clip-norm=1",
        "--required-seq-len-multiple=8",
        "--grouped-shuffling",
        "--curriculum=1",
        "--dropout=0.1",
        "--encoder-layerdrop=0.3",
        "--store-ema",
        "--find-unused-parameters",
    ]
    weights = []
    for flags in ((), ("--checkpoint-activations",)):
        folder = tmp_path / f"with{len(flags)}"
        here(*train, *flags, f"--save-dir={folder}")
        weights.append(torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    said = here(
        "fairseq-generate",
        data,
        "--task=nar_translation",
        f"--path={folder / 'checkpoint_last.pt'}",
        "--cpu",
        "--required-seq-len-multiple=8",
    )
    assert said.count("\nH-") == 40
    assert refusal(*train, "--sentence-avg") == "--sentence-avg does not work with --arch nat_tiny: leave it out"
