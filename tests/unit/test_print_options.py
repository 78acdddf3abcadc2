"""Every generator under everything that fairseq's commands print, or refuse, of a hypothesis; a blank line is among the
lines.

A blank line may be translated to nothing or, by the autoregressive searches, to something: it has its lines in any
    case.
"""

from argparse import Namespace

import pytest
from conftest import hypotheses
from saved import corpus, run, save

PAIRS = [("w1 w2 w3 w4", "w5 w6"), ("", ""), ("w4 w5", "w4 w4 w4")]
MODELS = {
    "ar": ("transformer_tiny",),
    "heads": ("blockwise_tiny",),
    "bang": ("bang_tiny",),
    "cmlm": ("cmlm_tiny",),
    "nat": ("nat_tiny",),
    "uniform": ("nat_tiny", "--source-copy", "uniform"),
    "ctc": ("nat_tiny", "--ctc"),
    "dag": ("dag_tiny", "--upsample", "4"),
}
BLOCKWISE, SHORT = {"generator": "blockwise", "max_len_b": 12}, {"max_len_b": 12}

# name -> the model, its options, and what of fairseq's is served
SEARCH = ("steps", "nbest", "hard", "soft", "prefix", "score")
GREEDY = ("steps", "hard", "soft", "prefix")
SYSTEMS = {
    "beam": ("ar", SHORT, SEARCH),
    "beam of one": ("ar", {**SHORT, "beam": 1}, SEARCH),
    "beam of heads": ("heads", SHORT, SEARCH),
    "bang ar": ("bang", {**SHORT, "bang_policy": "ar"}, SEARCH),
    "bang ar greedy": ("bang", {**SHORT, "bang_policy": "ar", "beam": 1}, SEARCH),
    "heads": ("heads", {**SHORT, "beam": 1}, GREEDY),
    "jacobi": ("ar", {**BLOCKWISE, "drafter": "jacobi"}, GREEDY),
    "copy": ("ar", {**BLOCKWISE, "drafter": "copy"}, GREEDY),
    "drafter": ("ar", {**BLOCKWISE, "drafter_path": "cmlm"}, GREEDY),
    "verify": ("bang", {**SHORT, "bang_policy": "verify"}, GREEDY),
    "fertilities": ("nat", SHORT, ("steps", "nbest")),
    "expected": ("nat", {**SHORT, "fertility": "average"}, ("steps", "nbest")),
    "lengths": ("uniform", {**SHORT, "length_beam": 3}, ("steps", "nbest")),
    "ctc": ("ctc", {}, ("steps", "nbest")),
    "ctc beam": ("ctc", {"ctc_beam": 3}, ("steps", "nbest")),
    "lookahead": ("dag", {}, ("steps", "nbest")),
    "greedy walk": ("dag", {"dag_decode": "greedy"}, ("steps", "nbest")),
    "viterbi": ("dag", {**SHORT, "dag_decode": "viterbi", "length_beam": 3}, ("steps", "nbest")),
    "joint viterbi": ("dag", {**SHORT, "dag_decode": "joint-viterbi", "rescorer": "ar"}, ("steps", "nbest")),
    "noisy parallel": ("nat", {**SHORT, "generator": "noisy_parallel", "rescorer": "ar"}, ("steps", "nbest")),
    "rescored": ("cmlm", {**SHORT, "iterations": 2, "rescorer": "ar"}, ("steps", "nbest")),
    **{
        schedule: ("cmlm", {**SHORT, "iterations": 3, "schedule": schedule}, ("steps", "nbest"))
        for schedule in ("linear", "cosine", "confidence")
    },
    **{
        policy: ("bang", {**SHORT, "bang_policy": policy}, ("steps",))
        for policy in ("adaptive", "nar", "block", "prefix", "cascade")
    },
}
OPTIONS = {
    "steps": {"print_step": True, "retain_iter_history": True},
    "nbest": {"nbest": 2, "print_step": True},
    "hard": {"print_alignment": "hard"},
    "soft": {"print_alignment": "soft"},
    "prefix": {"prefix_size": 2},
    "score": {"score_reference": True, "print_step": True, "retain_iter_history": True},
    "replace": {"replace_unk": "links", "dataset_impl": "raw"},
    "constraints": {"constraints": "ordered"},
}
REFUSED = {
    "nbest": "--nbest",
    "hard": "--print-alignment",
    "soft": "--print-alignment",
    "prefix": "--prefix-size",
    "score": "--score-reference",
    "replace": "--replace-unk",
    "constraints": "--constraints",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Namespace:
    root = tmp_path_factory.mktemp("print_options")
    data, raw = corpus(root / "text", PAIRS), corpus(root / "raw", PAIRS, dataset_impl="raw")
    (root / "lines").write_text("".join(f"{source}\n" for source, _ in PAIRS))
    (root / "links").write_text("w1 w2\n")
    models = {name: save(root / f"{name}.pt", *flags) for name, flags in MODELS.items()}
    return Namespace(root=root, data=data, raw=raw, links=root / "links", lines=root / "lines", **models)


def decode(made, command: str, system: str, option: str = "", **more) -> dict:
    """Kind of a line (H, P, A, I, E) -> number of the sentence -> its lines' fields."""
    model, settings, _ = SYSTEMS[system]
    settings = {**settings, **OPTIONS.get(option, {}), **more}
    for name in ("drafter_path", "rescorer", "replace_unk"):
        if name in settings:
            settings[name] = str(getattr(made, settings[name]))
    if command == "fairseq-interactive":
        settings = {"input": str(made.lines), "buffer_size": 3, "batch_size": 3, **settings}
    out = run(command, made.raw if "dataset_impl" in settings else made.data, getattr(made, model), **settings)
    history = [line for line in out.splitlines() if line.startswith("E-")]
    return {**{kind: hypotheses(out, kind) for kind in "HPAIC"}, "E": history}


def served(*options) -> list:
    return [(system, option) for system, (_, _, given) in SYSTEMS.items() for option in options if option in given]


@pytest.mark.parametrize("command", ["fairseq-generate", "fairseq-interactive"])
@pytest.mark.parametrize("system, option", served("steps", "nbest"))
def test_steps_history_and_alternatives_are_printed_of_every_line(made, command, system, option):
    given = SYSTEMS[system][2]
    out = decode(made, command, system, option)
    assert sorted(out["H"]) == [0, 1, 2]
    for lines in out["H"].values():
        assert 1 <= len(lines) <= (1 if option == "steps" else 2)
        assert given is SEARCH or len({text for _, text in lines}) == len(lines)  # fairseq's own may say a text twice
    if command == "fairseq-interactive":  # it prints neither steps nor history
        return
    steps = {i: [int(count) for (count,) in lines] for i, lines in out["I"].items()}
    tokens = {i: [len(scores.split()) for (scores,) in lines] for i, lines in out["P"].items()}
    assert {i: len(lines) for i, lines in steps.items()} == {i: len(lines) for i, lines in out["H"].items()}
    if given is SEARCH:
        assert steps == tokens
    if given is GREEDY:
        assert all(1 <= count <= size for i in steps for count, size in zip(steps[i], tokens[i]))
    if option != "steps":
        return
    history = {i: [line.split("\t") for line in out["E"] if line.startswith(f"E-{i}_")] for i in range(3)}
    assert {i: [name for name, _ in lines] for i, lines in history.items()} == {
        i: [f"E-{i}_{step}" for step in range(steps[i][0])] for i in range(3)
    }
    if given in (SEARCH, GREEDY) or "bang_policy" in SYSTEMS[system][1]:  # what was decided stays
        for i, ((_, text),) in out["H"].items():
            parts = [part for _, part in history[i]]
            assert all(after.startswith(before) for before, after in zip(parts, [*parts[1:], text]))


@pytest.mark.parametrize("system, option", served("hard", "soft"))
def test_alignments_are_printed_of_every_line(made, system, option):
    out = decode(made, "fairseq-generate", system, option)
    assert sorted(out["H"]) == sorted(out["A"]) == [0, 1, 2]
    for i, (source, _) in enumerate(PAIRS):
        (_, text), (links,) = out["H"][i][0], out["A"][i][0]
        if option == "hard":
            links = [tuple(map(int, link.split("-"))) for link in links.split()]
            assert [target for _, target in links] == (list(range(len(text.split()))) if source else [])
            assert all(0 <= place < len(source.split()) for place, _ in links)
        else:  # of every token, </s> too, over the source and its </s>
            rows = [[float(weight) for weight in row.split(",")] for row in links.split()]
            assert len(rows) == len(text.split()) + 1
            assert all(len(row) == len(source.split()) + 1 and sum(row) == pytest.approx(1, abs=1e-4) for row in rows)
    if option == "hard":
        typed = decode(made, "fairseq-interactive", system, option)
        assert (typed["A"], typed["H"]) == (out["A"], out["H"])


@pytest.mark.parametrize("policy, beam", [("ar", 1), ("ar", 5), ("verify", 5)])
def test_bangs_alignments_are_those_of_the_teacher_forced_pass(made, policy, beam, tmp_path):
    """fairseq's scorer asks for them in one pass over the references, here the translations."""
    found = decode(made, "fairseq-generate", "bang ar", "hard", bang_policy=policy, beam=beam)
    data = corpus(tmp_path, [(source, found["H"][i][0][1]) for i, (source, _) in enumerate(PAIRS)])
    out = run("fairseq-generate", data, made.bang, score_reference=True, bang_policy="ar", print_alignment="hard")
    assert hypotheses(out, "A") == found["A"]
    assert {i: lines[0][1] for i, lines in hypotheses(out).items()} == {
        i: lines[0][1] for i, lines in found["H"].items()
    }


@pytest.mark.parametrize("system", [name for name in SYSTEMS if "prefix" in SYSTEMS[name][2]])
def test_a_prefix_is_kept_and_that_of_an_empty_reference_ends(made, system):
    out = decode(made, "fairseq-generate", system, "prefix", nbest=1)
    assert sorted(out["H"]) == [0, 1, 2]
    texts = [out["H"][i][0][1] for i in range(3)]
    assert texts[0].startswith("w5 w6") and texts[1] == "" and texts[2].startswith("w4 w4")
    with pytest.raises(ValueError, match="^--prefix-size 2: fairseq-interactive has no references"):
        decode(made, "fairseq-interactive", system, "prefix")


@pytest.mark.parametrize("system", [name for name in SYSTEMS if "score" in SYSTEMS[name][2]])
def test_references_are_scored(made, system):
    out = decode(made, "fairseq-generate", system, "score")
    assert {i: lines[0][1] for i, lines in out["H"].items()} == {i: target for i, (_, target) in enumerate(PAIRS)}
    assert {i: int(lines[0][0]) for i, lines in out["I"].items()} == {0: 3, 1: 1, 2: 4}
    with pytest.raises(ValueError, match="^--score-reference needs references, and fairseq-interactive has none"):
        decode(made, "fairseq-interactive", system, "score")
    with pytest.raises(ValueError, match="^--print-alignment soft: --score-reference has hard alignments only"):
        decode(made, "fairseq-generate", system, "score", print_alignment="soft")
    assert sorted(decode(made, "fairseq-generate", system, "score", print_alignment="hard")["A"]) == [0, 1, 2]


@pytest.mark.parametrize("system, option", [(s, o) for s in SYSTEMS for o in REFUSED if o not in SYSTEMS[s][2]])
def test_what_cannot_be_printed_is_refused_by_name(made, system, option):
    with pytest.raises(ValueError, match=f"^{REFUSED[option]} "):
        decode(made, "fairseq-generate", system, option)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if SYSTEMS[name][2] in (SEARCH, GREEDY)])
def test_soft_alignments_are_refused_where_fairseq_cannot_print_them(made, system):
    with pytest.raises(ValueError, match="^--print-alignment soft: fairseq-interactive prints hard alignments only"):
        decode(made, "fairseq-interactive", system, "soft")


@pytest.mark.parametrize("system", ["beam", "beam of one", "bang ar"])
def test_constraints_are_kept_beside_a_blank_line(made, system, tmp_path):
    (tmp_path / "lines").write_text("w1 w2 w3 w4\tw9\n\nw4 w5\tw8\tw7\n")
    out = decode(
        made, "fairseq-interactive", system, "constraints", input=str(tmp_path / "lines"), print_alignment="hard"
    )
    assert sorted(out["H"]) == [0, 1, 2] and [len(out["C"].get(i, [])) for i in range(3)] == [1, 0, 2]
    assert "w9" in out["H"][0][0][1].split() and {"w8", "w7"} <= set(out["H"][2][0][1].split())
