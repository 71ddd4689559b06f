"""What a person's money depends on: 30 % faults, kill -9, a full disk, several processes. No answer is lost, none is stored or paid twice.

Everything is counted twice, by the server and by the journal, and the two must agree.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from speedlit.errors import SpeedlitError
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import Journal, journal_file, request_key
from tests.synthesis.server import Server, echo, faulty
from tests.synthesis.test_client import requests

ROOT = Path(__file__).parents[2]
COUNT, CONCURRENCY = 5000, 64
SETTINGS = {"concurrency": CONCURRENCY, "timeout": 1.0, "retries": 12, "backoff": 0.01, "patience": 300.0}


def rows(path: Path) -> Counter[str]:
    """Rows of a journal by event, and of those without a good answer also by reason."""
    db = sqlite3.connect(path)
    counted = Counter(event for (event,) in db.execute("SELECT event FROM attempts"))
    counted.update(detail for (detail,) in db.execute("SELECT detail FROM attempts WHERE event IN ('failed', 'damaged')"))
    db.close()
    return counted


def stored(path: Path, texts: dict[str, str]) -> set[str]:
    """The questions whose answers are in a journal."""
    db = sqlite3.connect(path)
    keys = [key for (key,) in db.execute("SELECT key FROM attempts WHERE event = 'answered'")]
    db.close()
    assert len(keys) == len(set(keys)), "an answer is stored twice"
    return {texts[key] for key in keys}


def questions(count: int) -> dict[str, str]:
    return {request_key("teacher", "m", request): request.messages[-1]["content"] for request in requests(count)}


def test_five_thousand_requests_with_thirty_percent_faults(tmp_path: Path) -> None:
    path = journal_file(tmp_path)
    with Server(faulty(0.3)) as server:
        client = HTTPBackend("m", server.url, path, **SETTINGS)
        replies = list(client.generate(requests(COUNT)))
        client.close()
    assert [r.id for r in replies] == [f"r{i}" for i in range(COUNT)]
    wrong = [r for i, r in enumerate(replies) if r.text != f"answer to question {i}" and not r.error]
    assert not wrong, "an answer to another question"
    rejected = Counter(r.error for r in replies if r.error)
    assert sum(rejected.values()) <= 2, rejected  # each attempt fails at 30 %, and there are 13
    seen = rows(path)
    assert seen["answered"] == len(stored(path, questions(COUNT))) == COUNT - sum(rejected.values())
    ended = seen["answered"] + seen["damaged"] + seen["failed"]
    assert seen["sent"] == ended == sum(server.asked.values()), "the server and the journal count the same attempts"
    lost = seen["delivered_twice"] + seen["timeout"]  # good answers that came behind a copy, or on a busy machine too late
    assert seen["answered"] <= sum(server.answered.values()) <= seen["answered"] + lost
    kinds = {"rate_limit_exceeded", "status_429", "status_500", "status_503", "connection_lost", "timeout", "body_is_no_json", "body_has_no_choice"}
    assert all(seen[kind] > 50 for kind in kinds), seen


SCRIPT = """
import json, sys
from pathlib import Path
from speedlit.synthesis.client import HTTPBackend
from tests.synthesis.test_client import requests
url, path, count, settings = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
client = HTTPBackend("m", url, path, **settings)
replies = [[reply.text, reply.error] for reply in client.generate(requests(count))]
client.close()
print(json.dumps(replies))
"""


def run(server: Server, path: Path, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT, server.url, str(path), str(count), json.dumps(SETTINGS)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_three_kills_at_random_cost_no_stored_answer_and_no_second_payment(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    path, texts = journal_file(tmp_path), questions(COUNT)
    before: list[tuple[set[str], Counter[str], Counter[str]]] = []  # at each kill: stored, asked, answered
    with Server(faulty(0.3, seed)) as server:
        for k in range(3):
            process = run(server, path, COUNT)
            mark = sum(server.asked.values()) + rng.randint(200, 1800)
            while sum(server.asked.values()) < mark and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, f"seed {seed}: kill {k} came too late"
            time.sleep(0.2)  # what the server was writing at the kill
            before.append((stored(path, texts), Counter(server.asked), Counter(server.answered)))
        last = run(server, path, COUNT)
        replies = json.loads(last.communicate()[0])
        assert last.returncode == 0
        asked, answered = Counter(server.asked), Counter(server.answered)
    assert all(text == f"answer to question {i}" or error for i, (text, error) in enumerate(replies)), f"seed {seed}"
    rejected = sum(bool(error) for _, error in replies)
    assert rejected <= 2
    seen, total = rows(path), stored(path, texts)
    assert seen["answered"] == len(total) == COUNT - rejected
    # what was stored at a kill was never asked again
    for kept, asked_then, _ in before:
        assert all(asked[text] == asked_then[text] for text in kept), f"seed {seed}: a stored answer was asked again"
        assert kept <= total
    # a good answer that was not stored is one that was in flight at a kill, or came behind a copy of another or too late: both are in the journal
    lost = seen["delivered_twice"] + seen["timeout"] + seen["connection_lost"]
    orphaned = seen["sent"] - seen["answered"] - seen["damaged"] - seen["failed"]
    assert orphaned <= 3 * CONCURRENCY, f"seed {seed}"
    assert sum(answered.values()) - seen["answered"] <= orphaned + lost, f"seed {seed}"
    # every attempt that the server saw is in the journal; a few are in the journal only: the kill came before they left
    assert 0 <= seen["sent"] - sum(asked.values()) <= orphaned, f"seed {seed}"
    # damaged answers were paid, counted, and asked again
    assert seen["damaged"] > 200
    assert Journal(path).counts()["tokens_in"] == 11 * (seen["answered"] + seen["delivered_twice"]) + 11 * empty(path)


def empty(path: Path) -> int:
    """Damaged answers whose usage could still be read."""
    db = sqlite3.connect(path)
    count: int = db.execute("SELECT COUNT(*) FROM attempts WHERE event = 'damaged' AND detail != 'delivered_twice' AND tokens_in > 0").fetchone()[0]
    db.close()
    return count


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True) if os.geteuid() == 0 else None
    if done is None or done.returncode != 0:
        pytest.skip("a disk of its own needs mount, which needs root" + (f": {done.stderr.strip()}" if done else ""))
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(small_disk: Path) -> None:
    path, count = journal_file(small_disk), 1200
    texts, noise = questions(count), random.Random(0)

    def long(body: dict, n: int) -> str:
        return echo(body, n) + " " + noise.randbytes(1000).hex()

    with Server(long) as server:
        for _ in range(2):  # also when it is started again without room
            asked = sum(server.asked.values())
            with pytest.raises(SpeedlitError, match="no space left on the disk while writing .*journal.sqlite: free some room") as caught:
                client = HTTPBackend("m", server.url, path, **SETTINGS)
                try:
                    list(client.generate(requests(count)))
                finally:
                    client.close()
            assert "\n" not in str(caught.value)
        assert sum(server.asked.values()) - asked <= CONCURRENCY, "nothing is asked that cannot be stored"
        kept, asked_then = stored(path, texts), Counter(server.asked)
        assert 100 < len(kept) < count
        assert sum(asked_then.values()) - len(kept) <= 2 * CONCURRENCY
        subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
        client = HTTPBackend("m", server.url, path, **SETTINGS)
        replies = list(client.generate(requests(count)))
        client.close()
    assert all(r.text.startswith(f"answer to question {i} ") for i, r in enumerate(replies))
    assert all(server.asked[text] == asked_then[text] for text in kept), "a stored answer was asked again"
    assert stored(path, texts) == set(texts.values())


SHARD = """
import sys
from pathlib import Path
from speedlit.synthesis.client import HTTPBackend
from speedlit.synthesis.journal import journal_file
from tests.synthesis.test_client import requests
url, root, index = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
client = HTTPBackend("m", url, journal_file(root, (index, 2)), concurrency=8, backoff=0.01)
mine = requests(300)[index::2] + requests(300)[:40]  # its share, and some that both want
assert [reply.text for reply in client.generate(mine)] == ["answer to " + request.messages[-1]["content"] for request in mine]
client.close()
"""


def test_two_shards_in_two_processes_on_one_folder(tmp_path: Path) -> None:
    with Server(echo, delay=0.005) as server:
        processes = [subprocess.Popen([sys.executable, "-c", SHARD, server.url, str(tmp_path), str(i)], cwd=ROOT) for i in range(2)]
        assert [process.wait(60) for process in processes] == [0, 0]
        asked = sum(server.asked.values())
        assert 300 <= asked <= 340, "what one has paid the other reads, but for what both had in flight"
        client = HTTPBackend("m", server.url, journal_file(tmp_path), concurrency=8)
        assert all(r.cached for r in client.generate(requests(300)))
        client.close()
    assert sum(server.asked.values()) == asked
    names = {path.name for path in tmp_path.glob("journal*.sqlite")}
    assert names == {"journal-00000-of-00002.sqlite", "journal-00001-of-00002.sqlite", "journal.sqlite"}


def test_the_same_row_from_two_clients_of_one_journal_is_one_answer(tmp_path: Path) -> None:
    journal = Journal(journal_file(tmp_path))
    with Server(echo, delay=0.3) as server:
        clients = [HTTPBackend("m", server.url, journal) for _ in range(2)]
        threads = [threading.Thread(target=list, args=(client.generate(requests(1)),)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
    counts = journal.counts()
    assert (counts["sent"], counts["answered"], counts["repeated"], counts["orphaned"]) == (2, 1, 1, 0)
    journal.close()
