"""Worker processes: results in order, failures as they are, and none left behind by a killed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speedlit.errors import UsageError
from speedlit.pipeline.parallel import in_processes


def twice(value: int, progress: bool = True) -> int:
    if value < 0:
        raise UsageError("negative")
    return 2 * value


def sleep(path: str, progress: bool = True) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(processes: int) -> None:
    assert in_processes("tests.pipeline.test_parallel:twice", [{"value": i} for i in range(5)], processes, "x") == [0, 2, 4, 6, 8]
    with pytest.raises(UsageError, match="negative"):
        in_processes("tests.pipeline.test_parallel:twice", [{"value": 1}, {"value": -1}], processes, "x")


def test_a_killed_run_leaves_no_worker_behind(tmp_path: Path) -> None:
    code = (
        "from speedlit.pipeline.parallel import in_processes\n"
        f"if __name__ == '__main__': in_processes('tests.pipeline.test_parallel:sleep', [{{'path': r'{tmp_path}/a'}}, {{'path': r'{tmp_path}/b'}}], 2, 'x')\n"
    )
    (tmp_path / "run.py").write_text(code)
    root = Path(__file__).resolve().parents[2]
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 90
    while not ((tmp_path / "a").exists() and (tmp_path / "b").exists() and (tmp_path / "b").read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    run.send_signal(signal.SIGKILL)
    run.wait()
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
