"""Word-level distillation and NAT's fine-tuning, worked out slowly from their definitions."""

import math

import pytest
import torch
from test_cmlm import transformer_checkpoint
from tiny import model, predictions

from nar_plugins.criterions.nar_loss import NarLoss
from nar_plugins.data.noise import FERTILITY_STREAM, uniform
from nar_plugins.models.contract import Plan
from nar_plugins.models.nat.finetuning import REWARD_SCALE
from nar_plugins.modules import source_copy

PAD, EOS, MASK = 1, 2, 24
SOURCE = torch.tensor([[5, 6, 7, 2], [9, 2, 1, 1]])
TARGET = torch.tensor([[11, 12, 13, 14, 2], [14, 15, 2, 1, 1]])
FERTILITIES = torch.tensor([[1, 0, 3, 1], [2, 1, 0, 0]])
UPDATE = 5


@pytest.fixture
def teacher(tmp_path):
    """A stock AR checkpoint without <mask>: its path."""
    transformer_checkpoint(tmp_path / "ar.pt")
    return str(tmp_path / "ar.pt")


def sample(m, task):
    net_input = {"src_tokens": SOURCE, "src_lengths": SOURCE.ne(PAD).sum(1), "prev_output_tokens": TARGET}
    batch = {"target": TARGET, "ntokens": 8, "id": torch.tensor([3, 8]), "net_input": net_input}
    batch = task.corrupt(batch, UPDATE)
    if getattr(m, "needs_fertilities", False):
        batch["net_input"]["fertilities"] = FERTILITIES
    return batch


def judge(ar, source, before):
    """The teacher's log-probabilities of the next token, one prefix at a time, without <mask>."""
    logits, _ = ar(source.unsqueeze(0), torch.tensor([len(source)]), torch.tensor([[EOS, *before]]))
    logits = logits[0, -1].clone()
    logits[MASK] = -math.inf
    return logits


@pytest.mark.parametrize(
    "arch, flags", [("cmlm_tiny", ()), ("nat_tiny", ("--source-copy", "uniform")), ("nat_tiny", ())]
)
@pytest.mark.parametrize("weight, temperature", [(1.0, 1.0), (0.5, 2.0)])
def test_soft_targets_are_the_teachers_distributions(teacher, arch, flags, weight, temperature):
    m, task = model(*flags, arch=arch)
    m.train()
    criterion = NarLoss(task, 0.1, teacher=teacher, soft_target_weight=weight, teacher_temperature=temperature)
    batch = sample(m, task)
    loss, size, logs = criterion(m, batch)
    plain = NarLoss(task, 0.1)(m, batch)[2]
    _, ((features, _, picked),) = predictions(m, **batch["net_input"], target=TARGET)
    ar, soft = criterion.teacher("cpu"), 0.0
    places = picked.nonzero().tolist()
    assert len(places) == int(size)
    for (b, t), logits in zip(places, m.decoder.output_layer(features[picked]).double()):
        source = SOURCE[b][SOURCE[b].ne(PAD)]
        p = (judge(ar, source, TARGET[b, :t].tolist()).double() / temperature).softmax(-1)
        soft -= float((p * (logits / temperature).log_softmax(-1)).sum()) * temperature**2
    wanted = weight * soft + (1 - weight) * float(plain["words_loss"])
    assert float(logs["words_loss"]) == pytest.approx(wanted, rel=1e-4)
    assert float(loss) == pytest.approx(float(plain["loss"]) - float(plain["words_loss"]) + wanted, rel=1e-4)
    assert float(logs["words_nll"]) == pytest.approx(
        float(plain["words_nll"])
    )  # the perplexity stays that of the words


def test_a_teacher_is_loaded_in_peace_while_bleu_is_measured(teacher):
    """Building a model sets up the generator of --eval-bleu, which itself loads the rescorer."""
    flags = ("--eval-bleu", "--generator", "noisy_parallel", "--rescorer", teacher)
    m, task = model(*flags, arch="nat_tiny")
    assert task.sequence_generator.rescorer is not None
    m.train()
    NarLoss(task, 0.0, teacher=teacher)(m, sample(m, task))
    assert task.noise == m.noise


def test_a_loss_factor_of_a_part_that_is_not_there_is_refused():
    m, task = model(arch="nat_tiny")
    with pytest.raises(ValueError, match="--length-loss-factor: this model predicts no length"):
        NarLoss(task, factors={"length": 0.5})(m, sample(m, task))


def test_validation_does_not_ask_the_teacher(teacher):
    m, task = model(arch="nat_tiny")
    batch = sample(m, task)
    losses = [NarLoss(task, 0.0, **extra)(m.eval(), batch)[0] for extra in ({}, {"teacher": teacher})]
    assert losses[0] == losses[1]


def reverse_kl(m, ar, row, plan):
    """-sum_t sum_y p(y) log p_AR(y | own argmax before t) of one sentence alone."""
    source = SOURCE[row][SOURCE[row].ne(PAD)]
    memory = m.encode(source.unsqueeze(0))
    canvas = m.canvas(memory, Plan(torch.tensor([0]), fertilities=torch.tensor([plan])))
    logits = m.project(m.decode(canvas, memory))[0].double()
    logits[:, MASK] = -math.inf
    best, total = logits[:, 2:].argmax(-1).add(2).tolist(), 0.0  # no <s> and no <pad>
    for t in range(len(best)):
        judged = judge(ar, source, best[:t]).double().log_softmax(-1)
        p = logits[t].softmax(-1)
        total -= sum(float(p[y] * judged[y]) for y in range(len(p)) if y != MASK)
    return total


def test_fine_tuning_is_the_papers_three_terms(teacher):
    m, task = model(arch="nat_tiny")
    with torch.no_grad():
        m.encoder.fertility_head.bias.copy_(-0.8 * torch.arange(50))
        m.decoder.output_projection.weight.mul_(20)
    m.train()
    criterion = NarLoss(task, 0.0, teacher=teacher, finetune_weight=0.25)
    batch = sample(m, task)
    loss, size, logs = criterion(m, batch)
    usual = float(NarLoss(task, 0.0)(m, batch)[0])
    ar = criterion.teacher("cpu")

    gold = sum(reverse_kl(m, ar, row, FERTILITIES[row][SOURCE[row].ne(PAD)].tolist()) for row in range(2))
    lprobs = m.fertility_lprobs(m.encode(SOURCE)).detach()
    drawn = source_copy.sample(lprobs.exp(), uniform(task.cfg.seed, UPDATE ^ FERTILITY_STREAM, torch.tensor([3, 8]), 4))
    rewards, chosen = [], []
    for row, words in enumerate((3, 1)):
        plans = []
        for fertilities in (drawn, source_copy.average(lprobs.exp())):
            plan = source_copy.bounded(
                fertilities[row, : words + 1], torch.tensor(words + 1), torch.tensor(2 * words + 2)
            )
            plans.append(plan.tolist())
        sampled, expected = (reverse_kl(m, ar, row, plan) for plan in plans)
        rewards.append(expected - sampled)
        chosen.append(sum(float(lprobs[row, j, drawn[row, j]]) for j in range(words)))
    mean = sum(rewards) / 2
    reinforce = -sum(REWARD_SCALE * (reward - mean) * lprob for reward, lprob in zip(rewards, chosen))
    assert abs(rewards[0] - rewards[1]) > 1e-3  # the samples differ from the expectation, or nothing was tested
    assert float(logs["backprop_loss"]) == pytest.approx(gold, rel=1e-4)
    assert float(logs["reinforce_loss"]) == pytest.approx(reinforce, rel=1e-3)
    assert float(loss) == pytest.approx(0.75 * usual + 0.25 * (gold + reinforce), rel=1e-4)
    assert int(size) == 8

    loss.backward()
    assert m.encoder.fertility_head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in ar.parameters())


def test_the_teacher_is_frozen_and_in_no_checkpoint(teacher):
    m, task = model(arch="nat_tiny")
    criterion = NarLoss(task, 0.0, teacher=teacher)
    assert (
        criterion.teacher("cpu")
        and not list(criterion.parameters())
        and not criterion.state_dict()
        and not list(criterion.children())
    )
    criterion.train()
    assert not criterion.teacher("cpu").training and not any(
        p.requires_grad for p in criterion.teacher("cpu").parameters()
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"finetune_weight": 0.25}, "need --teacher CKPT"),
        ({"soft_target_weight": 0.5}, "need --teacher CKPT"),
        ({"teacher_temperature": 2.0}, "need --teacher CKPT"),
        ({"finetune_weight": 1.5}, "--finetune-weight 1.5"),
    ],
)
def test_options_without_a_teacher_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NarLoss(model()[1], 0.0, **settings)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"soft_target_weight": 0.0}, "--teacher has nothing to do"),
        ({"soft_target_weight": 2.0}, "--soft-target-weight 2.0"),
        ({"teacher_temperature": 0.0}, "--teacher-temperature 0.0"),
    ],
)
def test_options_of_a_teacher_without_a_sense_are_refused(teacher, settings, message):
    with pytest.raises(ValueError, match=message):
        NarLoss(model()[1], 0.0, teacher=teacher, **settings)


@pytest.mark.parametrize(
    "arch, flags, settings, message",
    [
        ("cmlm_tiny", (), {"finetune_weight": 0.25}, "--finetune-weight is for nat"),
        ("nat_tiny", ("--source-copy", "soft"), {"finetune_weight": 0.25}, "--finetune-weight is for nat"),
        ("nat_tiny", ("--ctc",), {}, "--ctc has none"),
    ],
)
def test_models_that_cannot_be_taught_so_are_refused(teacher, arch, flags, settings, message):
    m, task = model(*flags, arch=arch)
    m.train()
    with pytest.raises(ValueError, match=message):
        NarLoss(task, 0.0, teacher=teacher, **settings)(m, sample(m, task))
