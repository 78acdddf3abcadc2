"""``bang`` with weights in the official names against numbers computed by the official release."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FIXTURES
from fairseq import options
from fairseq.data import Dictionary
from fairseq.models import ARCH_MODEL_REGISTRY

import nar_plugins  # noqa: F401

SIZES = {"layers": 2, "embed_dim": 32, "ffn_embed_dim": 64, "attention_heads": 4}
EXACT = 1e-6  # the release's softmax is in float32


@pytest.fixture(scope="module")
def release():
    path = FIXTURES / "bang_release" / "tiny.npz"
    stored = np.load(path, allow_pickle=False)
    return {key: torch.tensor(stored[key]) for key in stored.files}


@pytest.fixture(scope="module")
def model(release):
    symbols = Dictionary()
    symbols.symbols = [f"s{i}" for i in range(40)]
    symbols.indices = {symbol: i for i, symbol in enumerate(symbols.symbols)}
    symbols.pad_index, symbols.eos_index = 0, 3
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols, mask_index=39)
    given = ["data", "--task", "nar_translation", "--arch", "bang_ar_nar_mixed_base", "--criterion", "bang_loss"]
    given += ["--no-nar-sees-bos", "--max-source-positions", "64", "--max-target-positions", "64"]
    for side in ("encoder", "decoder"):
        given += [f"--{side}-{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
    args = options.parse_args_and_arch(options.get_training_parser("nar_translation"), input_args=given)
    one = ARCH_MODEL_REGISTRY[args.arch].build_model(args, task).double().eval()
    one.load_state_dict({key[len("model.") :]: value for key, value in release.items() if key.startswith("model.")})
    return one


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=EXACT)


@pytest.fixture(scope="module")
def encoded(model, release):
    with torch.no_grad():
        return model.encoder(release["src"], src_lengths=release["src"].ne(0).sum(1))


@torch.no_grad()
def test_encoder_and_autoregressive_logits(model, release, encoded):
    close(encoded["encoder_out"][0][release["src"].T.ne(0)], release["encoder_out"][release["src"].T.ne(0)])
    close(model.decoder(release["prev"], encoder_out=encoded)[0], release["ar_logits"])


@torch.no_grad()
def test_incremental_autoregressive_logits(model, release, encoded):
    state, length = {}, release["prev"].size(1)
    steps = [
        model.decoder(release["prev"][:, : t + 1], encoder_out=encoded, incremental_state=state)[0]
        for t in range(length)
    ]
    close(torch.cat(steps, 1), release["ar_logits"])


@torch.no_grad()
def test_non_autoregressive_logits_in_training_and_in_decoding(model, release, encoded):
    start, (batch, length) = release["prev"][:, :1], release["prev"].shape
    counts = torch.zeros(batch, length, dtype=torch.long)
    counts[:, 0] = length
    layout = model.decoder.layout(counts.ge(0), counts, with_ar=False)
    features = model.decoder.mask_features(release["prev"], model.decoder.memory(encoded), layout)
    close(model.decoder.output_layer(features).view_as(release["nar_logits"]), release["nar_logits"])
    none = torch.zeros(batch, dtype=torch.long)
    features = model.decoder.decode_step(start, none, model.decoder.start(encoded), length, none.unsqueeze(1))
    close(model.decoder.output_layer(features).squeeze(1), release["nar_logits"])


@torch.no_grad()
def test_two_separated_spans_of_pre_training(model, release):
    encoded = model.encoder(release["span_src"])
    real = release["span_prev"].ne(0)
    layout = model.decoder.layout(
        real, real.long(), with_ar=True, positions=release["span_positions"], nar_sees_bos=True
    )
    features = model.decoder.mask_features(release["span_prev"], model.decoder.memory(encoded), layout)
    close(model.decoder.output_layer(features).view_as(release["span_ar_logits"]), release["span_ar_logits"])
