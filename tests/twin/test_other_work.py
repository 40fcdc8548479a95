"""What other work took of the machine, from the kernel's account."""

import os
import time
from pathlib import Path

import pytest

from benchmarks.other_work import OtherWork


def account(path: Path, *, user_s: float, idle_s: float, steal_s: float) -> None:
    """Write the first lines of /proc/stat."""
    user, idle, steal = (round(value * os.sysconf("SC_CLK_TCK")) for value in (user_s, idle_s, steal_s))
    path.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3 4\n", encoding="ascii")


def test_what_others_took_is_a_share_of_all_processors(tmp_path: Path) -> None:
    """Busy time and stolen time count; what was before does not."""
    stat = tmp_path / "stat"
    account(stat, user_s=500.0, idle_s=900.0, steal_s=5.0)
    work = OtherWork(stat)
    account(stat, user_s=520.0, idle_s=970.0, steal_s=15.0)
    assert work.share() == pytest.approx(0.3, abs=0.01)


def test_own_work_is_not_others(tmp_path: Path) -> None:
    """A second of this process in a busy time of one second leaves nothing for others."""
    stat = tmp_path / "stat"
    account(stat, user_s=0.0, idle_s=0.0, steal_s=0.0)
    work = OtherWork(stat)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    account(stat, user_s=0.3, idle_s=0.7, steal_s=0.0)
    assert work.share() == pytest.approx(0.0, abs=0.02)


def test_without_an_account_nothing_is_known(tmp_path: Path) -> None:
    """Such as outside of Linux."""
    assert OtherWork(tmp_path / "stat").share() is None
