"""Front door: looks at the command word and imports only what that command needs."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from speedlit import __version__
from speedlit.errors import SpeedlitError, UsageError

COMMANDS: dict[str, tuple[str, str, str]] = {
    # command: (module, group, one line)
    "run": ("run", "the loop", "all 15 stages of the SPEED loop, resumable"),
    "plan": ("plan", "the loop", "what a run will take, before anything is spent"),
    "synth": ("synth", "the loop", "one synthesis stage, or one shard of it"),
    "teacher": ("teacher", "the loop", "serve the embedded, OpenAI-compatible teacher"),
    "report": ("report", "the loop", "one self-contained HTML page about a run"),
    "study": ("study", "the loop", "scaling, ablation and cross-model studies of a run"),
    "shard": ("shard", "training", "any JSONL or Hugging Face dataset to training shards"),
    "fit": ("fit", "training", "train a module on shards (LightningCLI)"),
    "validate": ("fit", "training", "one validation pass"),
    "test": ("fit", "training", "one test pass"),
    "predict": ("predict", "models", "embeddings of a corpus, over ranks, resumable"),
    "evaluate": ("evaluate", "models", "MTEB tasks on a checkpoint or folder"),
    "export": ("export", "models", "adapter, merged or sentence-transformers folder"),
    "merge": ("merge", "models", "one model from several: average or slerp"),
    "mine": ("mine", "models", "hard negatives for contrastive data"),
    "list": ("list", "about", "recipes, modules, losses, callbacks, teachers"),
    "init": ("init", "about", "a starter project with an own module, data and a test"),
    "doctor": ("doctor", "about", "what this machine can do, and what a config lacks"),
    "completion": ("completion", "about", "shell completion: bash or zsh"),
}


def usage() -> str:
    """The text of ``speedlit --help``."""
    lines = [f"speedlit {__version__}: the SPEED loop and a trainer for generators and embedders", "", "usage: speedlit COMMAND [options]", ""]
    for group in dict.fromkeys(group for _, group, _ in COMMANDS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:<10} {text}" for name, (_, g, text) in COMMANDS.items() if g == group]
        lines.append("")
    lines += ["example: speedlit run --config demo", "help:    speedlit COMMAND --help; --debug anywhere shows tracebacks"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (0 fine, 1 failure, 2 usage)."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or bool(os.environ.get("SPEEDLIT_DEBUG"))
    words = [w for w in words if w != "--debug"]
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(usage(), flush=True)
            return 0 if words else 2
        if words[0] == "--version":
            print(__version__)
            return 0
        return dispatch(words)
    except SpeedlitError as error:
        if debug:
            raise
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        if debug:
            raise
        print("error: out of memory; use smaller batches or fewer processes", file=sys.stderr)
        return 1
    except OSError as error:
        if debug:
            raise
        from pathlib import Path

        from speedlit.files import disk_error

        print(f"error: {disk_error(error, Path(str(error.filename or 'a file')))}", file=sys.stderr)
        return 1


def dispatch(words: list[str]) -> int:
    """Import the command's module and run it.

    Raises:
        UsageError: no such command.
    """
    command = words[0]
    if command.startswith("-"):
        raise UsageError(f"{command} stands before the command; write `speedlit COMMAND {command} ...`")
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise UsageError(f"no command {command!r}; " + (f"did you mean `speedlit {near[0]}`?" if near else "`speedlit --help` lists them"))
    module = import_module(f"speedlit.commands.{COMMANDS[command][0]}")
    return int(module.run(words if COMMANDS[command][0] == "fit" else words[1:]) or 0)
