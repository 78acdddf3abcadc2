"""What cannot score, teach or be decoded is refused by name, whatever it is asked for."""

from argparse import Namespace

import pytest
import tiny
import torch
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from test_teachers import edited, save

from nar_plugins.checkpoint_io.teachers import check_teacher, load_teacher
from nar_plugins.generators.beam import BeamGenerator
from nar_plugins.generators.canvas.rescore import Rescorer
from nar_plugins.models.nat.finetuning import reverse_kl
from nar_plugins.modules.block_decoder import BlockDecoder, positional
from nar_plugins.modules.teacher_forcing import Teacher, check_forced, encode_source, forced_features

PAD, EOS = 1, 2


def model(*flags, arch="transformer_tiny", words=20):
    small = ("--encoder-layers", "1", "--decoder-layers", "1")
    return tiny.model(*small, *flags, arch=arch, criterion="cross_entropy", words=words)[0].eval()


@pytest.fixture(scope="module")
def adaptive():
    return model("--adaptive-softmax-cutoff", "5,10")


@pytest.fixture(scope="module")
def few():
    """A model of 6 source and 5 target positions."""
    return model(
        "--max-source-positions", "6", "--max-target-positions", "5", "--encoder-learned-pos", "--decoder-learned-pos"
    )


def options(**more):
    return Namespace(unnormalized=False, lenpen=1.0, **more)


# -- adaptive softmax --------------------------------------------------------------------------------------------------


def test_an_adaptive_softmax_is_refused_by_name(adaptive):
    for role in ("teacher", "rescorer"):
        with pytest.raises(
            ValueError, match=f"^it cannot be a {role}: models of --adaptive-softmax-cutoff are decoded by"
        ):
            check_teacher(adaptive, "it", role)
    with pytest.raises(
        ValueError, match="^--generator beam cannot decode this TransformerModel: models of --adaptive-softmax-cut"
    ):
        BeamGenerator([model(), adaptive], None, None, options(), 24, None)


@pytest.mark.parametrize("role", ["teacher", "rescorer"])
def test_a_checkpoint_of_an_adaptive_softmax_is_refused_before_its_tables_are_loaded(tmp_path, role):
    path = tmp_path / "teacher.pt"
    save(path, task="translation")
    edited(path, lambda s: setattr(s["cfg"]["model"], "adaptive_softmax_cutoff", "5,10"))
    with pytest.raises(ValueError) as error:
        load_teacher(str(path), tiny.task(), role)
    assert str(error.value).startswith(f"{path} cannot be a {role}: models of --adaptive-softmax-cutoff")


def test_a_stock_checkpoint_of_an_adaptive_softmax_is_told_from_another_dictionarys(adaptive):
    """Without ``<mask>`` its last class has a row less; fairseq-generate loads before any generator is built."""
    stored = adaptive.state_dict()
    name = max(key for key in stored if "adaptive_softmax.tail" in key and key.endswith("2.weight"))
    stored[name] = stored[name][:-1]
    built, task = tiny.model(
        "--encoder-layers",
        "1",
        "--decoder-layers",
        "1",
        "--adaptive-softmax-cutoff",
        "5,10",
        arch="transformer_tiny",
        criterion="cross_entropy",
    )
    with pytest.raises(ValueError, match=r"adaptive_softmax.tail.* here: models of --adaptive-softmax-cutoff"):
        built.load_state_dict(stored)
    built.load_state_dict(adaptive.state_dict())  # a training that goes on


# -- roles
# -----------------------------------------------------------------------------------------------------------------


def test_the_message_calls_a_rescorer_a_rescorer(tmp_path):
    path = tmp_path / "nat.pt"
    save(path)
    edited(path, lambda s: setattr(s["cfg"]["model"], "_name", "nat_tiny"))
    for role in ("rescorer", "teacher"):
        with pytest.raises(ValueError) as error:
            load_teacher(str(path), tiny.task(), role)
        assert (
            str(error.value) == f"{path} holds a NatModel: a {role} is an autoregressive model, such as a transformer"
        )
    save(path, task="translation")
    edited(path, lambda s: s["cfg"]["task"].update(_name="language_modeling"))
    with pytest.raises(ValueError, match="a rescorer comes from nar_translation or translation"):
        load_teacher(str(path), tiny.task(), "rescorer")


def test_the_last_of_several_paths_is_called_a_rescorer():
    cmlm, task = tiny.model()
    generation = Namespace(iter_decode_with_external_reranker=True, beam=5)
    with pytest.raises(
        ValueError, match="the last checkpoint of --path holds a CmlmModel: a rescorer is an autoregressive"
    ):
        task.build_generator([cmlm, cmlm], generation)


def test_a_recurrent_model_cannot_score_given_targets():
    lstm = model(arch="lstm")
    check_teacher(lstm, "it")  # it can be distilled
    with pytest.raises(ValueError, match="^--rescorer holds a LSTMModel: given targets are scored by a Transformer"):
        Rescorer(lstm, PAD, EOS, 24, options())
    for arch in ("transformer_tiny", "blockwise_tiny"):
        check_forced(model(arch=arch), "it")
    check_forced(tiny.model("--share-all-embeddings", arch="bang_tiny", criterion="bang_loss")[0], "it")


# -- positions
# ----------------------------------------------------------------------------------------------------------------


def sources(*lengths, width=0):
    rows = torch.full((len(lengths), max(*lengths, width)), PAD)
    for row, n in zip(rows, lengths):
        row[:n] = torch.arange(4, 4 + n)
        row[n - 1] = EOS
    return rows


def test_sources_and_targets_beyond_the_positions_are_one_line(few):
    wide = sources(6, 3, width=9)  # padding counts for nothing
    encoded = encode_source(few, wide, PAD)
    plain = few.encoder(sources(6, 3), src_lengths=torch.tensor([6, 3]))
    torch.testing.assert_close(encoded["encoder_out"][0][:6], plain["encoder_out"][0])
    with pytest.raises(
        ValueError, match="^a source of 7 tokens is longer than the teacher's 6 positions: give one with more --max-so"
    ):
        encode_source(few, sources(7, 3), PAD)
    targets = sources(5, 2, width=8)
    assert forced_features(few, encoded, targets, PAD, EOS).shape[:2] == (2, 8)
    with pytest.raises(
        ValueError, match="^a target of 6 tokens is longer than the teacher's 5 positions: give one with more --max-ta"
    ):
        forced_features(few, encoded, sources(6, 2), PAD, EOS)


def test_a_rescorer_with_few_source_positions_is_one_line(few):
    rescorer = Rescorer(few, PAD, EOS, 24, options())
    candidates, sizes, which = sources(4, 4, 3), torch.tensor([4, 4, 3]), torch.tensor([0, 0, 1])
    assert rescorer(sources(6, 5, width=8), candidates, sizes, which).shape == (3,)
    with pytest.raises(
        ValueError, match="^a source of 8 tokens is longer than the rescorer's 6 positions: .*--max-source-positions"
    ):
        rescorer(sources(8, 5), candidates, sizes, which)


def test_word_level_distillation_from_a_teacher_with_few_positions_is_one_line(few, monkeypatch):
    student, task = tiny.model()
    criterion = task.build_criterion(convert_namespace_to_omegaconf(tiny.arguments("--teacher", "ar.pt")).criterion)
    monkeypatch.setattr("nar_plugins.criterions.nar_loss.load_teacher", lambda path, task: few)

    def loss(source, target):
        sample = {
            "id": torch.tensor([0]),
            "target": target,
            "ntokens": target.size(1),
            "nsentences": 1,
            "net_input": {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1)},
        }
        return criterion(student.train(), task.corrupt(sample, 1))

    assert loss(sources(6), sources(5))[0].isfinite()
    with pytest.raises(ValueError, match="^a source of 7 tokens is longer than the teacher's 6 positions"):
        loss(sources(7), sources(5))
    with pytest.raises(ValueError, match="^a target of 6 tokens is longer than the teacher's 5 positions"):
        loss(sources(6), sources(6))


def test_nats_fine_tuning_from_a_teacher_with_few_positions_is_one_line(few, monkeypatch):
    few.decoder.dictionary = tiny.task().target_dictionary
    with pytest.raises(ValueError, match="^a target of 6 tokens is longer than the teacher's 5 positions"):
        reverse_kl(Teacher(few, sources(6), 24), torch.randn(1, 6, 25), torch.ones(1, 6, dtype=torch.bool))


# -- sinusoidal positions as fairseq 0.12.2 has them
# --------------------------------------------------------------------------


def plain_tables(parent: torch.nn.Module) -> None:
    """Make every sinusoidal table a plain attribute, which ``half`` and ``to`` pass by, as in fairseq 0.12.2."""
    for module in parent.modules():
        if "weights" in module._buffers:
            table = module._buffers.pop("weights")
            object.__setattr__(module, "weights", table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_blockwise_decoding_converts_a_sinusoidal_table_that_is_no_buffer(dtype):
    made = model()
    plain_tables(made.decoder)
    made.to(dtype)
    positions = made.decoder.embed_positions
    assert positions.weights.dtype == torch.float32  # the trap works
    blocks = BlockDecoder(made.decoder)
    with torch.no_grad():
        cache = blocks.start(made.encoder(sources(4, 4), src_lengths=torch.tensor([4, 4])))
        tokens = torch.tensor([[EOS, 5, 6], [EOS, 7, 8]])
        features, _ = blocks(tokens, torch.zeros(2, dtype=torch.long), 0, 0, 99, cache)
    assert features.dtype == dtype
    right = positions.get_embedding(3000, positions.embedding_dim, PAD)[[2, 4, 2002]].to(dtype)
    found = positional(positions, torch.tensor([[0, 2, 2000]]), 2000, made.decoder.embed_tokens.weight)
    torch.testing.assert_close(found[0], right)  # where the table has grown too
