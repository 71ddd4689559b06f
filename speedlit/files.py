"""Durable, atomic files: a reader sees the old content or the new, never a half."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from speedlit.errors import SpeedlitError, UsageError

_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
LOCAL_KINDS = frozenset(
    ["apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "ntfs3", "overlay", "ramfs", "rootfs", "tmpfs", "vfat", "xfs", "zfs"]
)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, real Unicode."""
    return _CANONICAL(value)


def content_id(value: Any) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of ``path`` only after everything is on the disk.

    Raises:
        SpeedlitError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """A text stream into ``whole``.

    Raises:
        SpeedlitError: as there.
    """
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def fsync_dir(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_error(error: OSError, path: Path) -> SpeedlitError:
    """The one sentence for a write that failed."""
    if error.errno == errno.ENOSPC:
        return SpeedlitError(f"no space left on the disk while writing {path}: free some room and start again; nothing finished is lost")
    return SpeedlitError(f"cannot write {path}: {error.strerror or error}; check the folder and its permissions")


def on_local_disk(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether only this machine writes the filesystem of ``path``; unknown kinds count as shared. Where nothing can be known, True."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return True
    best, kind = -1, ""
    real = path.resolve()
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")  # a blank is written in octal
        if real.is_relative_to(point) and len(point) >= best:  # a later mount on the same point hides the earlier
            best, kind = len(point), right.split()[0]
    return kind in LOCAL_KINDS or not kind


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    with atomic(path) as stream:
        json.dump(value, stream, indent=2, sort_keys=True, ensure_ascii=False)
        stream.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error


def read_object(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that must be an object with ``keys``.

    Raises:
        UsageError: it is something else; names the file.
    """
    try:
        value = read_json(path)
    except UsageError as error:
        if isinstance(error.__cause__, ValueError):
            raise UsageError(f"{error}; remove it, or its folder, to go on") from error
        raise
    if not isinstance(value, dict) or any(key not in value for key in keys):
        wanted = ", ".join(keys) or "keys"
        raise UsageError(f"{path} is damaged (no JSON object with {wanted}); remove it, or its folder, to go on")
    return value


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as sorted-key JSON lines, atomically; returns how many."""
    count = 0
    with atomic(path) as stream:
        for row in rows:
            stream.write(canonical_json(row) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; blank lines are passed over.

    Raises:
        UsageError: the file is missing or a line is not a JSON object (names the line).
    """
    try:
        stream = path.open(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    with stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{path}:{number} is not valid JSON: {error}") from error
                if not isinstance(row, dict):
                    raise UsageError(f"{path}:{number} is not a JSON object but {type(row).__name__}")
                yield row
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 text: {error}") from error


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
