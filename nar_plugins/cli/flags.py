"""nar-flags: list the flags that this package adds to fairseq's commands, by task, generator, model and criterion.

Examples:

    nar-flags                        all flags
    nar-flags train nat_tiny         the flags of fairseq-train --arch nat_tiny, with this architecture's defaults
    nar-flags generate cmlm_tiny     the flags of fairseq-generate for such a checkpoint

fairseq-train uses the generators' flags for --eval-bleu. fairseq's commands show their own flags:
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


def text(shown: List[Section], width: int) -> str:
    lines = []
    for section in shown:
        lines.append(section.title())
        lines += textwrap.wrap(section.note, width, initial_indent="  ", subsequent_indent="  ")
        for flag in section.flags:
            default = f"  (default: {flag.default})" if flag.default else ""
            lines.append(f"  {flag.names} {flag.value}".rstrip() + default)
            lines += textwrap.wrap(flag.help, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    return "\n".join(lines)


def markdown(shown: List[Section]) -> str:
    def escape(entry: str) -> str:
        return entry.replace("|", "\\|").replace("<", "\\<")

    lines = [
        "# The flags of nar_plugins",
        "",
        "The flags that the package adds to fairseq's commands. `nar-flags --markdown > docs/flags.md` writes this "
        "page: do not edit it.",
        "`nar-flags train ARCH` and `nar-flags generate ARCH` print the flags of one architecture.",
        "A flag with an empty default is unset. `fairseq-train` uses the generators' flags for `--eval-bleu`.",
        "",
    ]
    for section in shown:
        lines += [
            f"## {section.title()}",
            "",
            *([f"{section.note[0].upper()}{section.note[1:]}.", ""] if section.note else []),
        ]
        lines += ["| flag | default | |", "|---|---|---|"]
        for flag in section.flags:
            names = f"`{flag.names} {flag.value}".rstrip().replace("|", "\\|") + "`"
            lines.append(f"| {names} | {escape(flag.default)} | {escape(flag.help)} |")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("nar-flags", __doc__)
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=f"{', '.join(COMMANDS)} (default: all)")
    parser.add_argument("arch", nargs="?", metavar="ARCH", help="an architecture of this package (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print the page docs/flags.md")
    return parser


def main(argv=None) -> None:
    args = build_parser().parse_args(argv)
    command, arch = args.command, args.arch
    if command is not None:
        command = command[len("fairseq-") :] if command.startswith("fairseq-") else command
        if arch is None and command in ARCH_MODEL_REGISTRY:
            command, arch = None, command
    with one_line_errors("nar-flags"):
        shown = sections(command, arch)
    sys.stdout.write(markdown(shown) if args.markdown else text(shown, min(120, shutil.get_terminal_size().columns)))


if __name__ == "__main__":
    main()
