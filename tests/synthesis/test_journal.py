"""The journal by itself: several files in one folder, damage, locks, filesystems."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from speedlit.errors import SpeedlitError
from speedlit.files import on_local_disk
from speedlit.synthesis import journal as module
from speedlit.synthesis.journal import Event, Journal, journal_file

ROOT = Path(__file__).parents[2]


def answered(key: str, raw: str) -> list[Event]:
    return [Event(key, "sent", tokens_in=900, tokens_out=900), Event(key, "answered", 200, 0.1, 11, 7, "", raw)]


def test_journals_that_appear_later_are_seen_and_those_that_go_are_forgotten(tmp_path: Path) -> None:
    mine = Journal.for_shard(tmp_path, (0, 2))
    assert mine.answers(["a", "b"]) == {}
    (tmp_path / "journal-new.sqlite").touch()  # somebody has made it a moment ago and written no table yet
    other = Journal.for_shard(tmp_path, (1, 2))
    other.append(answered("a", "late"))
    assert mine.answers(["a", "b"]) == {"a": "late"}
    assert mine.counts() == {"sent": 1, "answered": 1, "damaged": 0, "failed": 0, "repeated": 0, "tokens_in": 11, "tokens_out": 7, "orphaned": 0}
    other.close()
    for path in tmp_path.glob("journal-00001-of-00002.sqlite*"):
        path.unlink()
    assert mine.answers(["a"]) == {}
    mine.close()


def test_of_two_answers_everybody_takes_the_earlier(tmp_path: Path) -> None:
    """Two shards that asked the same at the same time must not go on with different records."""
    journals = [Journal.for_shard(tmp_path, (i, 2)) for i in range(2)]
    journals[1].append(answered("a", "first"))
    journals[0].append(answered("a", "second"))
    whole = Journal.for_shard(tmp_path)
    assert [journal.answers(["a"]) for journal in (*journals, whole)] == [{"a": "first"}] * 3
    for journal in (*journals, whole):
        journal.close()


def test_an_answer_is_stored_once_and_what_comes_again_is_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append([*answered("a", "one"), *answered("a", "two")])
    journal.append(answered("a", "three"))
    counts = journal.counts()
    assert (counts["sent"], counts["answered"], counts["repeated"], counts["orphaned"]) == (3, 1, 2, 0)
    assert counts["tokens_out"] == 21, "paid all the same"
    assert journal.answers(["a"]) == {"a": "one"}
    journal.close()


@pytest.mark.parametrize("whose", ["own", "other"])
def test_a_damaged_file_is_named(whose: str, tmp_path: Path) -> None:
    path = journal_file(tmp_path) if whose == "own" else journal_file(tmp_path, (3, 8))
    path.write_bytes(b"this was a journal once" * 400)
    with pytest.raises(SpeedlitError, match=f"the journal .*{path.name} is damaged.*move it away") as caught:
        Journal.for_shard(tmp_path).answers(["a"])
    assert "\n" not in str(caught.value)


def test_a_damaged_answer_is_no_answer_of_another_kind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.append(answered("a", "one"))
    with sqlite3.connect(journal.path) as db:
        db.execute("UPDATE attempts SET raw = x'00112233' WHERE event = 'answered'")
    db.close()
    with pytest.raises(SpeedlitError, match="journal.sqlite is damaged"):
        journal.answers(["a"])
    journal.close()


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    journal = Journal(tmp_path / "journal.sqlite")
    holder = sqlite3.connect(journal.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(SpeedlitError, match="journal.sqlite is locked by another process"):
        journal.append(answered("a", "one"))
    holder.execute("ROLLBACK")
    holder.close()
    journal.append(answered("a", "one"))
    assert journal.answers(["a"]) == {"a": "one"}
    journal.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpeedlitError, match="cannot use the journal .*file/journal.sqlite"):
        Journal(tmp_path / "file" / "journal.sqlite")


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
41 22 0:40 / /data rw,relatime shared:1 - nfs4 server:/data rw,vers=4.2
42 41 0:41 / /data/local rw - xfs /dev/vdb rw
43 22 0:42 / /with\\040blank rw - lustre mds:/x rw
44 22 0:43 / /twice rw - ext4 /dev/vdc rw
45 44 0:44 / /twice rw - fuse.sshfs me@host: rw
"""


def test_which_disks_are_local(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    kinds = {"/runs": True, "/data/runs": False, "/data/local/runs": True, "/with blank/runs": False, "/twice/runs": False, "/database": True}
    assert {path: on_local_disk(Path(path), mounts) for path in kinds} == kinds
    assert on_local_disk(Path("/runs"), tmp_path / "no such file"), "on other systems nothing is known"


WRITER = """
import sys
from pathlib import Path
from speedlit.synthesis import journal
journal.on_local_disk = lambda path: False
mine = journal.Journal(Path(sys.argv[1]))
for n in range(10**6):
    mine.append([journal.Event(f"{sys.argv[2]}-{n}", "answered", 200, raw="x" * 500)])
    print(n, flush=True)
"""


def test_on_a_shared_filesystem_no_memory_is_shared_and_a_kill_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "on_local_disk", lambda path: False)
    mine = Journal.for_shard(tmp_path, (0, 2))
    theirs = journal_file(tmp_path, (1, 2))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(theirs), "k"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout is not None
    seen = 0
    for line in writer.stdout:
        mine.append(answered(f"mine-{line.strip()}", "y"))
        assert mine.answers([f"k-{line.strip()}"]), "what is on the disk is seen at once, while both write"
        seen = int(line)
        if seen >= 20:
            break
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert len(mine.answers([f"k-{n}" for n in range(seen + 1)])) == seen + 1
    assert not list(tmp_path.glob("*-shm")), "write-ahead mode maps memory that machines cannot share"
    mine.close()
