"""Checks that all forms in which a model is shipped translate a test set alike.

    python benchmarks/check_shipping.py dag.pt bin --spm spm.model --source test.en --reference test.de \\
        --work shipped --flags "--dag-decode joint-viterbi --dedup token"

The checkpoint is packed (nar-pack) and exported (nar-export onnx, float32 and int8) into --work, a new folder. Then the
test set is translated five times: by fairseq-generate from the binarised data; from the raw text by the hub with the
checkpoint; by the hub with the packed folder, moved elsewhere, in a process that starts in another folder and fails
where it opens a file of the data; and by the runtime.py of both exported folders, in processes that cannot import
torch, fairseq or this package. Printed are the outputs whose sub-words and text are
those of fairseq-generate, and BLEU; all texts are in --work.

--flags go to fairseq-generate, the hub and runtime.py; --held to the first two and, as --flags, to nar-export.
The exit status is 1 where a float32 output differs, or int8 loses more than --most BLEU.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import sentencepiece

from nar_plugins.cli.command import shield_flags
from nar_plugins.cli.demo import keywords
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.measure.quality import score

BIN, PACKAGE = Path(sys.executable).parent, Path(__file__).resolve().parents[1]
FIRST, INT8 = "fairseq-generate", "ONNX, int8"
HUB = """
import json, os, sys
path, data, options, forbidden = json.loads(sys.argv[1])
def refuse(event, arguments):
    if forbidden and event == "open" and str(arguments[0]).startswith(forbidden):
        raise SystemExit(f"{arguments[0]} is opened")
sys.addaudithook(refuse)
from nar_plugins.hub import from_pretrained
sys.stdin.reconfigure(encoding="utf-8", newline="\\n")
texts = [line.rstrip("\\n") for line in sys.stdin]
found = from_pretrained(path, data, **options).translate(texts)
with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8") as out:
    json.dump([(each.tokens, each.text) for each in found], out)
"""
ALONE = """
import runpy, sys
for name in ("torch", "fairseq", "nar_plugins", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Output(NamedTuple):
    """A translation."""

    tokens: List[str]  # sub-words, without </s>
    text: str


def output(line: str, text: Optional[str] = None) -> Output:
    """That of a line of sub-words.

    Args:
        text: detokenised; None: as fairseq does it, without blanks at the ends. SentencePiece's own ``decode`` keeps
            one at the end where the last sub-word is a blank alone.
    """
    whole = line.replace(" ", "").replace("\u2581", " ").strip() if text is None else text
    return Output(line.split(" ") if line else [], whole)


def run(command: List[str], **settings) -> str:
    """The standard output of a command; its errors end this program."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8", **settings)
    if done.returncode:
        sys.exit(f"check_shipping: {shlex.join(map(str, command))}\n{done.stderr[-3000:]}")
    return done.stdout


def generated(args, flags: List[str]) -> List[Output]:
    """The outputs of fairseq-generate, in the order of the data: its H- lines are the sub-words of its D- lines."""
    words = ["--bpe", "sentencepiece", "--sentencepiece-model", args.spm]
    task = ["--user-dir", PACKAGE / "nar_plugins", "--task", "nar_translation", "--path", args.checkpoint]
    out = run([BIN / FIRST, args.data, *task, *words, *flags, *(["--cpu"] if args.cpu else [])])
    found = {
        kind: {int(number): line for number, line in re.findall(rf"^{kind}-(\d+)\t\S+\t(.*)$", out, re.M)}
        for kind in "HD"
    }
    return [output(line, found["D"][number]) for number, line in sorted(found["H"].items())]


def by_hub(
    model: Path, data: Optional[Path], options: Dict, texts: str, where: Path, forbidden: str = ""
) -> List[Output]:
    """The outputs of the hub in a process that starts in the folder ``where``."""
    read, write = os.pipe()
    given = json.dumps([str(model), None if data is None else str(data), options, forbidden])
    with os.fdopen(read, encoding="utf-8") as answer:
        process = subprocess.Popen(
            [sys.executable, "-c", HUB, given, str(write)],
            stdin=subprocess.PIPE,
            pass_fds=[write],
            cwd=where,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(PACKAGE)},
            encoding="utf-8",
        )
        os.close(write)
        process.stdin.write(texts)
        process.stdin.close()
        found = answer.read()
        if process.wait():
            sys.exit(f"check_shipping: the hub could not translate with {model}")
    return [Output(*each) for each in json.loads(found)]


def by_runtime(folder: Path, flags: List[str], texts: List[str], spm) -> List[Output]:
    """The outputs of an exported folder's own program."""
    pieces = "".join(f"{' '.join(spm.encode(text, out_type=str))}\n" for text in texts)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, folder / "runtime.py", *flags]
    out = run(command, input=pieces, cwd=folder, env=environment)
    return [output(line) for line in out.split("\n")[:-1]]


def slug(name: str) -> str:
    """The name of a form as that of a file."""
    return name.lower().replace(", ", "-").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path, help="its binarised data, with the test set as split test")
    parser.add_argument("--spm", type=Path, required=True, help="its SentencePiece model")
    parser.add_argument("--source", type=Path, required=True, help="the raw test set")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--flags", default="", help="decoding flags that are chosen when an exported model is run")
    parser.add_argument("--held", default="", help="decoding flags that nar-export --flags takes")
    parser.add_argument("--most", type=float, default=0.3, help="BLEU that int8 may lose (default: 0.3)")
    parser.add_argument("--no-int8", action="store_true", help="float32 only: the processor has no VNNI")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(shield_flags(sys.argv[1:], parser))
    for name in ("checkpoint", "data", "spm", "work"):
        setattr(args, name, getattr(args, name).resolve())
    texts = args.source.read_text(encoding="utf-8").split("\n")[:-1]
    references = args.reference.read_text(encoding="utf-8").split("\n")[:-1]
    if len(texts) != len(references):
        sys.exit(f"check_shipping: {len(texts)} sources and {len(references)} references")
    flags, held = shlex.split(args.flags), shlex.split(args.held)
    options = {**keywords(f"{args.flags} {args.held}"), **({"cpu": True} if args.cpu else {})}
    words = {"bpe": "sentencepiece", "sentencepiece_model": str(args.spm)}
    args.work.mkdir()

    outputs = {FIRST: generated(args, [*flags, *held])}
    if len(outputs[FIRST]) != len(texts):
        sys.exit(f"check_shipping: the data have {len(outputs[FIRST])} sentences, {args.source} has {len(texts)}")
    text = "".join(f"{line}\n" for line in texts)
    outputs["hub, checkpoint"] = by_hub(args.checkpoint, args.data, {**options, **words}, text, args.work)
    pack = [BIN / "nar-pack", args.checkpoint, "--data", args.data, "--spm", args.spm, "--out", args.work / "packed"]
    print(run(pack).strip(), flush=True)
    (args.work / "elsewhere").mkdir()
    moved = Path(shutil.move(args.work / "packed", args.work / "elsewhere" / "model"))
    outputs["hub, packed folder"] = by_hub(moved, None, options, text, moved.parent, str(args.data))
    spm = sentencepiece.SentencePieceProcessor(model_file=str(args.spm))
    exports = {"ONNX, float32": [], **({} if args.no_int8 else {INT8: ["--int8"]})}
    for name, more in exports.items():
        folder = args.work / slug(name)
        export = [BIN / "nar-export", "onnx", args.checkpoint, "--data", args.data, "--out", folder, *more]
        print(run([*export, f"--flags={args.held}"]).strip(), flush=True)
        outputs[name] = by_runtime(folder, flags, texts, spm)

    metric = bleu_metric(None, None)
    bleu = {name: score([each.text for each in found], [references], metric).bleu for name, found in outputs.items()}
    print("\n| form | equal outputs | BLEU |\n|---|---|---|")
    failed = INT8 in bleu and bleu[INT8] < bleu[FIRST] - args.most
    for name, found in outputs.items():
        (args.work / f"{slug(name)}.txt").write_text("".join(f"{each.text}\n" for each in found), encoding="utf-8")
        if len(found) != len(texts):
            sys.exit(f"check_shipping: {name} has {len(found)} outputs for {len(texts)} sentences")
        differ = [number for number, pair in enumerate(zip(found, outputs[FIRST])) if pair[0] != pair[1]]
        print(f"| {name} | {len(found) - len(differ)} of {len(texts)} | {bleu[name]:.2f} |")
        if differ and name != INT8:
            failed = True
            for number in differ[:3]:
                print(f"  {number}: {' '.join(found[number].tokens)}", file=sys.stderr)
                print(f"  {FIRST}: {' '.join(outputs[FIRST][number].tokens)}", file=sys.stderr)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
