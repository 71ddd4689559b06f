"""``speedlit teacher serve``: the embedded teacher as an OpenAI-compatible server on loopback."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 to 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line of ``speedlit teacher``."""
    top = argparse.ArgumentParser(prog="speedlit teacher", description="The embedded teacher: a procedural world behind an OpenAI-compatible server.")
    serve = top.add_subparsers(dest="action", required=True, metavar="serve").add_parser("serve", help="answer on http://HOST:PORT/v1 until stopped")
    serve.add_argument("--port", type=int, default=8008, help="0 takes a free port; the ready line names it (default 8008)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--writer-noise", type=_share, default=0.03, help="share of written records with a planted defect (default 0.03)")
    serve.add_argument("--judge-noise", type=_share, default=0.0, help="share of rankings with shuffled scores (default 0)")
    serve.add_argument("--critic-noise", type=_share, default=0.0, help="share of critiques with a missing or needless edit (default 0)")
    serve.add_argument("--world-seed", type=int, default=0, help="which world; the shipped base model knows world 0 (default 0)")
    serve.add_argument("--stop-with-stdin", action="store_true", help="also stop when standard input closes: a run's teacher never outlives it")
    return top


def _until_closed(stop: Callable[[], None]) -> None:
    while os.read(0, 4096):  # the descriptor itself: a locked sys.stdin would spoil the interpreter's end
        pass
    stop()


def run(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; prints one line when ready.

    Raises:
        UsageError: the port is in use or cannot be opened.
    """
    args = parser().parse_args(list(argv))
    from speedlit.offline.server import Server
    from speedlit.offline.teacher import Noise, Teacher
    from speedlit.offline.world import World

    server = Server(Teacher(World(args.world_seed), Noise(args.writer_noise, args.judge_noise, args.critic_noise)), args.host, args.port)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
    if args.stop_with_stdin:
        threading.Thread(target=_until_closed, args=(server.shutdown,), daemon=True).start()
    print(f"speedlit teacher ready on http://{args.host}:{server.server_port}/v1", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
