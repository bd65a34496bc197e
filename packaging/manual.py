#!/usr/bin/env python3
"""Write the manual pages and the shells' completions, from the program and from `config.toml`.

    manual.py DIR     arcpipe.1, arcpipe.toml.5, arcpipe.bash, _arcpipe (zsh), arcpipe.fish

It runs with an interpreter that has arcpipe. Commands, options and exit codes come from the command line's own help,
settings from the comments of `config.toml`: a page says nothing that is not said there.
"""

from __future__ import annotations

import datetime
import importlib.resources
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.completion import get_completion_script  # type: ignore[attr-defined]
from typer.main import get_command

from arcpipe import __version__
from arcpipe.cli import main as cli

_COMPLETIONS = {"bash": "arcpipe.bash", "zsh": "_arcpipe", "fish": "arcpipe.fish"}


def main() -> None:
    """Write all files into the directory that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arcpipe.1").write_text(program_page())
    (folder / "arcpipe.toml.5").write_text(settings_page())
    for shell, name in _COMPLETIONS.items():
        (folder / name).write_text(completion(shell))


def completion(shell: str) -> str:
    """Return a shell's completion, which asks the installed program for its words."""
    script: str = get_completion_script(prog_name="arcpipe", complete_var="_ARCPIPE_COMPLETE", shell=shell).strip()
    # zsh loads the file at the first Tab: without a call that Tab would complete nothing.
    return script + ('\n_arcpipe_completion "$@"\n' if shell == "zsh" else "\n")


# arcpipe(1)


def program_page() -> str:
    """Return the page of the program."""
    root = get_command(cli.app)
    lines = [
        head("ARCPIPE", 1),
        ".SH NAME",
        r"arcpipe \- durable HTTP ingestion gateway: telemetry in, Parquet out, exactly once",
        ".SH SYNOPSIS",
        r"\fBarcpipe\fR \fICOMMAND\fR [\fIOPTION\fR]...",
        ".SH DESCRIPTION",
        text(root.help or ""),
        ".SH OPTIONS",
        *options_of(root, "arcpipe"),
        ".SH COMMANDS",
        *(line for name, command in commands_of(root, "arcpipe") for line in section(name, command)),
        ".SH EXIT STATUS",
        text(exit_codes()),
        ".SH ENVIRONMENT",
        ".TP",
        r"\fBARCPIPE_CONFIG\fR",
        text("The file of settings, where no command names one by --config."),
        ".TP",
        r"\fBARCPIPE_\fISECTION\fB_\fIKEY\fR",
        text("Each setting, as ARCPIPE_WAL_DIR for wal.dir. It counts more than the file."),
        ".TP",
        r"\fBARCPIPE_TOKEN\fR",
        text("The token of commands that ask a server."),
        ".SH FILES",
        ".TP",
        r"\fI/etc/arcpipe/config.toml\fR",
        text("The settings of the service."),
        ".TP",
        r"\fI/var/lib/arcpipe\fR",
        text("The service's working directory: its WAL, and its store if that is a directory."),
        ".SH SEE ALSO",
        r"\fBarcpipe.toml\fR(5), \fBsystemctl\fR(1), \fBjournalctl\fR(1)",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def commands_of(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield each command below one, with the words that lead to it."""
    for word, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from commands_of(child, f"{name} {word}")
        else:
            yield f"{name} {word}", child


def section(name: str, command: Any) -> Iterator[str]:
    """Yield the lines of one command."""
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [bold(escaped(name)), *(escaped(piece) for piece in command.collect_usage_pieces(context))]
    yield f".SS {' '.join(arguments)}"
    yield text(command.help or "")
    yield from options_of(command, name)


def options_of(command: Any, name: str) -> Iterator[str]:
    """Yield the lines of a command's options and arguments."""
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            yield ".TP"
            yield bold(escaped(record[0]))
            yield text(record[1].removeprefix("  "))


def exit_codes() -> str:
    """Return the sentence about exit codes of the command line's own docstring."""
    found = re.search(r"^Exit codes: (.*?\.)\s", cli.__doc__ or "", re.DOTALL | re.MULTILINE)
    assert found is not None, "BUG: arcpipe/cli/main.py does not list its exit codes"
    return found[1]


# arcpipe.toml(5)


def settings_page() -> str:
    """Return the page of the settings."""
    introduction, *sections = re.split(r"^(?=\[[a-z0-9_.]+\]$)", settings_text(), flags=re.MULTILINE)
    lines = [
        head("ARCPIPE.TOML", 5),
        ".SH NAME",
        r"arcpipe.toml \- settings of arcpipe",
        ".SH SYNOPSIS",
        r"\fI/etc/arcpipe/config.toml\fR",
        ".SH DESCRIPTION",
        comment(introduction.splitlines()),
        *(line for part in sections for line in settings_of(part)),
        ".SH SEE ALSO",
        r"\fBarcpipe\fR(1)",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def settings_text() -> str:
    """Return the file with all settings."""
    return (importlib.resources.files("arcpipe") / "share" / "config.toml").read_text(encoding="utf-8")


def settings_of(part: str) -> Iterator[str]:
    """Yield the lines of one section: its heading, and each key with its comment. Some keys share one."""
    heading, _, rest = part.partition("\n")
    yield f'.SH "{escaped(heading)}"'
    for block in rest.strip("\n").split("\n\n"):
        lines = block.splitlines()
        for number, key in enumerate(line for line in lines if not line.startswith("#")):
            yield from (".TQ" if number else ".TP", bold(escaped(key)))
        yield comment([line for line in lines if line.startswith("#")])


def comment(lines: list[str]) -> str:
    """Return a comment as text: lines that are indented stay lines, the others are filled."""
    return text("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines))


# roff


def head(title: str, number: int) -> str:
    """Return the first line of a page. Its date is that of the build, which a package sets."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    at = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC) if epoch else datetime.datetime.now(datetime.UTC)
    return f'.TH {title} {number} {at:%Y-%m-%d} "arcpipe {__version__}" "arcpipe"'


def text(content: str) -> str:
    """Return paragraphs. What is indented is a line of its own; a paragraph with \\b is an example, line by line."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", content.strip("\n")):
        if "\b" in paragraph:
            title, *example = paragraph.replace("\b\n", "").splitlines()
            lines += [
                ".sp",
                escaped(title.strip()),
                ".nf",
                *(f"    {escaped(line.strip())}" for line in example),
                ".fi",
            ]
            continue
        if lines:
            lines.append(".sp")
        for line in paragraph.splitlines():
            if line.startswith("  ") and lines and lines[-1] != ".br":
                lines.append(".br")
            lines.append(escaped(line.strip()))
            if line.startswith("  "):
                lines.append(".br")
    return "\n".join(lines)


def escaped(content: str) -> str:
    """Return text in which roff finds no request."""
    content = content.replace("\\", r"\e").replace("-", r"\-").replace("`", r"\(ga").replace("^", r"\(ha")
    return re.sub(r"^([.'])", r"\\&\1", content.replace("~", r"\(ti"))


def bold(content: str) -> str:
    """Return text in bold."""
    return rf"\fB{content}\fR"


if __name__ == "__main__":
    main()
