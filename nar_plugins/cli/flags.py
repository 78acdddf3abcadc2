"""nar-flags: the flags that this package adds to fairseq's commands, by task, generator, model and criterion.

Examples:

    nar-flags                        all of them
    nar-flags train nat_tiny         those that fairseq-train --arch nat_tiny reads, with this architecture's defaults
    nar-flags generate cmlm_tiny     those that fairseq-generate reads for such a checkpoint

fairseq-train reads the generators' flags for --eval-bleu. fairseq's own flags are shown by its commands:
fairseq-train --user-dir "$(nar-user-dir)" --arch ARCH --help
"""

import argparse
import shutil
import sys
import textwrap
from typing import List

from fairseq.models import ARCH_MODEL_REGISTRY

from nar_plugins.cli.command import new_parser, one_line_errors
from nar_plugins.cli.registered_flags import COMMANDS, Section, sections


def text(found: List[Section], width: int) -> str:
    lines = []
    for section in found:
        lines.append(section.title())
        lines += textwrap.wrap(section.note, width, initial_indent="  ", subsequent_indent="  ")
        for one in section.flags:
            default = f"  (default: {one.default})" if one.default else ""
            lines.append(f"  {one.names} {one.value}".rstrip() + default)
            lines += textwrap.wrap(one.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def markdown(found: List[Section]) -> str:
    def cell(words: str) -> str:
        return words.replace("|", "\\|").replace("<", "\\<")

    lines = [
        "# The flags of nar_plugins",
        "",
        "What the package adds to fairseq's commands. Written by `nar-flags --markdown > docs/flags.md`: do not edit "
        "it.",
        "`nar-flags train ARCH` and `nar-flags generate ARCH` print what concerns one architecture. An empty default "
        "is unset.",
        "`fairseq-train` reads the generators' flags for `--eval-bleu`.",
        "",
    ]
    for section in found:
        lines += [
            f"## {section.title()}",
            "",
            *([f"{section.note[0].upper()}{section.note[1:]}.", ""] if section.note else []),
        ]
        lines += ["| flag | default | |", "|---|---|---|"]
        for one in section.flags:
            names = f"`{one.names} {one.value}".rstrip().replace("|", "\\|") + "`"
            lines.append(f"| {names} | {cell(one.default)} | {cell(one.help)} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-flags", __doc__)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=f"{', '.join(COMMANDS)} (default: all)")
    parser.add_argument("arch", nargs="?", metavar="ARCH", help="an architecture of this package (default: all)")
    parser.add_argument("--markdown", action="store_true", help="as the page docs/flags.md")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    command, arch = args.command, args.arch
    if command is not None:
        command = command[len("fairseq-") :] if command.startswith("fairseq-") else command
        if arch is None and command in ARCH_MODEL_REGISTRY:
            command, arch = None, command
    with one_line_errors("nar-flags"):
        found = sections(command, arch)
    sys.stdout.write(markdown(found) if args.markdown else text(found, min(120, shutil.get_terminal_size().columns)))


if __name__ == "__main__":
    main()
