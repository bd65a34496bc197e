"""Fuzzing by hand, guided by coverage: `python -m tests.fuzz [TARGET]… [--seconds N]`, or `make fuzz`.

Each target runs in a process of its own for that time, with atheris (`pip install '.[fuzz]'`), from the examples below
and what earlier runs have found, which is kept under `.fuzz/`. `--inputs` may end it earlier, and `--blind` tries many
times as many, without the guidance. The program ends with exit code 1 at the first input that breaks something; atheris
shows it and keeps it there, too. A warning of numpy breaks something: the server would have it in its log.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

CORPUS = Path(".fuzz")
# What a target may use, in MB: above it an input counts as a failure.
MEMORY_MB = 1500


def main() -> int:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--inputs", type=int, default=-1, help="for each target, at most")
    parser.add_argument("--blind", action="store_true", help="try many more inputs, without guidance by coverage")
    arguments = parser.parse_args()
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"there is no target {unknown.pop()!r}")
    for target in arguments.targets or TARGETS:
        options = ["--run-blind" if arguments.blind else "--run", target, str(arguments.seconds), str(arguments.inputs)]
        command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tests.fuzz", *options]
        process = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        done = re.search(r"Done (\d+) runs? in (\d+) second", process.stderr)
        if process.returncode or done is None:
            print(process.stderr, file=sys.stderr)
            print(f"{target}: FAILED", flush=True)
            return 1
        print(f"{target}: {int(done[1]):,} inputs in {done[2]} s, nothing broke", flush=True)
    return 0


def run_blind(target: str, seconds: str, inputs: str) -> None:
    """Fuzzes without guidance in this process."""
    from tests.fuzz import blind
    from tests.fuzz.targets import TARGETS

    pool = examples(target) + [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]
    CORPUS.mkdir(exist_ok=True)
    began = time.monotonic()
    done = blind.run(TARGETS[target], pool, float(seconds), int(inputs), CORPUS / f"crash-{target}")
    print(f"Done {done} runs in {time.monotonic() - began:.0f} second(s)", file=sys.stderr)


def run(target: str, seconds: str, inputs: str) -> None:
    """Fuzzes in this process, and ends it."""
    import atheris

    with atheris.instrument_imports(include=["arcpipe"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    corpus = CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(examples(target)):
        (corpus / f"example-{number}").write_bytes(example)
    options = [
        f"-max_total_time={seconds}",
        f"-runs={inputs}",
        f"-rss_limit_mb={MEMORY_MB}",
        "-timeout=20",
        "-max_len=20000",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={CORPUS}/", str(corpus)], TARGETS[target])
    atheris.Fuzz()


def examples(target: str) -> list[bytes]:
    from tests.fuzz import test_fuzz as given
    from tests.support.http import request_bytes

    if target != "edge":
        return given.EXAMPLES.get(target, given.BODIES)
    found = []
    for path in given.PATHS:
        for body in given.BODIES:
            request = request_bytes("POST", path, body, {"Content-Encoding": "gzip"} if body[:1] == b"\x1f" else None)
            found.append(b"\x02\x00\x10\x00\x20" + request * 2)
    for header in given.HEADERS:
        name, _, value = header.partition(":")
        found.append(b"\x00" + request_bytes("GET", "/ping", b"", {name: value.strip()}))
    chunked = {"Transfer-Encoding": "chunked"}
    found.append(b"\x00" + request_bytes("POST", "/write", b"5\r\na b=1\r\n0\r\nx: y\r\n\r\n", chunked))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:])
    elif sys.argv[1:2] == ["--run-blind"]:
        run_blind(*sys.argv[2:])
    else:
        sys.exit(main())
