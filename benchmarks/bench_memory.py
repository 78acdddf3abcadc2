"""Peak memory of decoding on a CPU in float32, bfloat16 and int8, each in a fresh process.

    python benchmarks/bench_memory.py [--models nat,ctc,cmlm] [--dtypes float32,int8] [--batch 32] [--sentences 96]

Models of random weights, 512/1024 dimensions, 6+6 layers and a vocabulary of 10,000; sentences of newstest2014's
lengths. Megabytes of

- decoding: the model and its decoding, as ``nar-bench --memory`` has it: the most that was resident, beyond what was
  before the model was loaded. What loading takes besides does not count.
- the command: the most that was ever resident in ``fairseq-generate``, with all that it imports and with the loading.
- beyond imports: that without what is resident when the command has printed its help.

The ratios are to the first type.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

import torch
from bench_rivals import MODELS, make_checkpoint, make_data

from nar_plugins.measure.machine import counts_memory
from nar_plugins.measure.memory import in_a_process

CHECKPOINTS = {**MODELS, "cmlm": ("cmlm",)}
FLAGS = {"nat": ("--gold-length",), "cmlm": ("--gold-length", "--length-beam", "5"), "ctc": ()}
USER_DIR = ("--user-dir", str(Path(__file__).resolve().parent.parent / "nar_plugins"), "--task", "nar_translation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nat,ctc,cmlm", help=f"of {', '.join(FLAGS)}")
    parser.add_argument("--dtypes", default="float32,int8", help="values of --decode-dtype")
    parser.add_argument("--batch", type=int, default=32, help="sentences of a batch")
    parser.add_argument("--sentences", type=int, default=96, help="a multiple of 4")
    parser.add_argument("--words", type=int, default=10000)
    args = parser.parse_args()
    if not counts_memory():
        sys.exit("only Linux counts a process's peak memory")
    imports = peak_of_command("--help")
    print(f"torch {torch.__version__}; what fairseq-generate imports: {megabytes(imports)} MB")
    headings = ("decoding", "the command", "beyond imports")
    print(f"{'MB':24}" + "".join(f"{heading:>24}" for heading in headings))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.sentences, args.words)
        for model in args.models.split(","):
            path, first = str(folder / f"{model}.pt"), None
            make_checkpoint(Path(path), args.words, *CHECKPOINTS[model])
            for dtype in args.dtypes.split(","):
                flags = [*FLAGS[model], "--decode-dtype", dtype, "--cpu"]
                decoding = in_a_process(model, path, name, flags, args.batch, torch.get_num_threads())
                command = peak_of_command(name, *USER_DIR, "--path", path, "--batch-size", str(args.batch), *flags)
                found = (decoding, command, command - imports)
                first = first or found
                cells = [f"{megabytes(size)} ({size / base:.2f})" for size, base in zip(found, first)]
                print(f"{model + ', ' + dtype:24}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def peak_of_command(*arguments: str) -> int:
    """Bytes: the most that was resident in a ``fairseq-generate`` with these arguments."""
    program: List[str] = [sys.executable, "-m", "fairseq_cli.generate", *arguments]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(program, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            sys.exit(output.read().decode(errors="replace")[-2000:])
    return usage.ru_maxrss * 1024


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"


if __name__ == "__main__":
    main()
