"""One benchmark at two commits of this repository, in turn, so that both meet the same machine.

    python benchmarks/compare_commits.py OLD NEW [--runs 3] bench_one_pass --batches 1 --repeats 3

OLD and NEW are commits; each is checked out into a temporary worktree, whose own package and benchmark script run. What
follows the script's name are its arguments. The runs alternate: old, new, old, new ... Printed is the new commit's
table, each number replaced by its median over the runs, and below each line the ratios new / old of its numbers. Where
the numbers are times, a ratio of 1.03 is three percent slower.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the commit before")
    parser.add_argument("new", help="the commit after")
    parser.add_argument("--runs", type=int, default=3, help="runs of each commit")
    parser.add_argument("script", help="the benchmark's name, such as bench_one_pass")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder, "old"), Path(folder, "new")]
        for tree, commit in zip(trees, (args.old, args.new)):
            subprocess.run(["git", "worktree", "add", "-q", "--detach", tree, commit], cwd=ROOT, check=True)
        try:
            outputs = [[], []]
            for _ in range(args.runs):
                for tree, lines in zip(trees, outputs):
                    lines.append(numbered_lines(run(tree, args.script, args.arguments)))
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    print(f"{args.script} {' '.join(args.arguments)}: {args.runs} runs each of {args.old} and {args.new}, in turn\n")
    print(compared(*outputs))


def run(tree: Path, script: str, arguments: List[str]) -> str:
    """The output of a commit's benchmark; in older commits the benchmarks stand in scripts/."""
    path = next((p for p in (tree / "benchmarks", tree / "scripts") if (p / f"{script}.py").exists()), None)
    if path is None:
        sys.exit(f"compare_commits: {script}.py is in one of the commits only")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, str(path / f"{script}.py"), *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"compare_commits: {script} failed at {tree.name}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def numbered_lines(output: str) -> List[str]:
    return [line for line in output.splitlines() if NUMBER.search(line)]


def compared(old: List[List[str]], new: List[List[str]]) -> str:
    """The table of the new runs with medians, and the ratios to the old ones."""
    if len({len(lines) for lines in [*old, *new]}) > 1:
        sys.exit("compare_commits: the two commits print different tables: compare them by hand")
    printed = []
    for lines in zip(zip(*old), zip(*new)):
        medians = [[statistics.median(values) for values in zip(*map(numbers, runs))] for runs in lines]
        if len(medians[0]) != len(medians[1]):
            sys.exit(f"compare_commits: '{lines[0][0]}' and '{lines[1][0]}' have not as many numbers")
        ratios = [after / before for before, after in zip(*medians) if before]
        middle = iter(medians[1])
        printed.append(NUMBER.sub(lambda match: f"{next(middle):,.4g}", lines[1][0]))
        if any(ratio != 1 for ratio in ratios):
            printed.append("    new / old: " + " ".join(f"{ratio:.3f}" for ratio in ratios))
    return "\n".join(printed)


def numbers(line: str) -> List[float]:
    return [float(match.replace(",", "")) for match in NUMBER.findall(line)]


if __name__ == "__main__":
    main()
