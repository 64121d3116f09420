"""The last line of a journal file, torn by a crash or a full disk: repaired before anything is appended behind it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

import optuna_aznas as az
from optuna_aznas.storage import journals, repair_journal


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """The bytes of a journal with four trials; its last record is the fourth one's value."""
    path = tmp_path_factory.mktemp("journal") / "whole.log"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), study_name="s")
    for x in range(4):
        study.add_trial(optuna.trial.create_trial(state=TrialState.RUNNING, system_attrs={"x": x, "name": "größe"}))
        study.tell(x, float(x))
    return path.read_bytes()


def last(journal):
    return journal.rindex(b"\n", 0, len(journal) - 1) + 1


def states(path):
    """What Optuna's own storage reads, without any of our code."""
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    return [trial.state.name for trial in study.trials]


COMPLETE, TORN = ["COMPLETE"] * 4, ["COMPLETE"] * 3 + ["RUNNING"]


def test_optuna_alone_loses_the_journal(journal, tmp_path):
    """Why all this: when this fails, Optuna has mended it."""
    path = tmp_path / "nas.log"
    path.write_bytes(journal[:-5])
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    study.set_user_attr("a", 1)
    with pytest.raises(ValueError, match=r"Expecting|delimiter|Extra"):
        study.set_user_attr("b", 2)


def test_torn_at_every_byte(journal, tmp_path, caplog):
    path = tmp_path / "nas.log"
    for end in range(last(journal), len(journal)):
        path.write_bytes(journal[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="optuna_aznas"):
            storage = az.open_storage(f"journal:{path}")
        assert len(caplog.records) == (end > last(journal)), end
        study = optuna.load_study(study_name="s", storage=storage)
        study.set_user_attr("a", 1)
        study.set_user_attr("b", 2)
        assert states(path) == (COMPLETE if end == len(journal) - 1 else TORN), end
        assert study.user_attrs == {"a": 1, "b": 2}
        assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_torn_while_a_worker_is_running(journal, tmp_path, caplog):
    """The disk is full for one worker; another, which has the journal open, goes on."""
    path = tmp_path / "nas.log"
    path.write_bytes(journal)
    study = optuna.load_study(study_name="s", storage=az.open_storage(f"journal:{path}"))
    for end in range(last(journal) + 1, len(journal)):
        with path.open("ab") as file:
            file.write(journal[last(journal) : end][: end - last(journal)])
        study.set_user_attr("end", end)
        assert study.user_attrs == {"end": end}
    assert states(path) == COMPLETE
    assert len(caplog.records) == len(journal) - last(journal) - 1


WORKER = """
import sys
import optuna
from optuna_aznas.storage import open_storage
study = optuna.load_study(study_name="s", storage=open_storage("journal:" + sys.argv[1]))
print("ready", flush=True)
for i in range(int(sys.argv[2])):
    study.set_user_attr(f"worker-{i}", i)
"""


def test_torn_at_every_byte_while_another_worker_appends(journal, tmp_path):
    path = tmp_path / "nas.log"
    path.write_bytes(journal)
    record = journal[last(journal) :]
    n = 150
    worker = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER, str(path), str(n)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "ready\n"
    lock = journals.JournalFileSymlinkLock(str(path))
    for end in range(1, len(record)):
        lock.acquire()  # whoever tears a line holds the lock
        with path.open("ab") as file:
            file.write(record[:end])
        lock.release()
        optuna.load_study(study_name="s", storage=az.open_storage(f"journal:{path}")).set_user_attr(f"own-{end}", end)
    assert worker.wait(timeout=120) == 0
    study = optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))
    assert study.user_attrs == {f"worker-{i}": i for i in range(n)} | {f"own-{i}": i for i in range(1, len(record))}
    assert states(path) == COMPLETE


def test_a_record_appended_to_a_torn_line_is_kept(journal, tmp_path):
    """Optuna alone appended, once: the line is no record, and with the next one the journal would be unreadable."""
    path = tmp_path / "nas.log"
    for end in range(last(journal) + 1, len(journal) - 1):
        path.write_bytes(journal[:end])
        optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path)))).set_user_attr("a", end)
        study = optuna.load_study(study_name="s", storage=az.open_storage(f"journal:{path}"))
        study.set_user_attr("b", end)
        assert study.user_attrs == {"a": end, "b": end}
        assert states(path) == TORN


@pytest.mark.parametrize("block", [1, 7, 64, 10**6])
def test_the_last_line_is_found_in_blocks(journal, tmp_path, monkeypatch, block):
    monkeypatch.setattr(journals, "_BLOCK", block)
    path = tmp_path / "nas.log"
    for end in (last(journal), len(journal) - 3, len(journal)):
        path.write_bytes(journal[:end])
        assert repair_journal(path) == (end == len(journal) - 3)
        assert path.read_bytes() == journal[: len(journal) if end == len(journal) else last(journal)]


def test_what_needs_no_repair_is_left_alone(journal, tmp_path):
    path = tmp_path / "nas.log"
    assert not repair_journal(path)
    assert not path.exists()
    path.touch()
    assert not repair_journal(path)
    path.write_bytes(journal)
    assert not repair_journal(path)
    assert path.read_bytes() == journal
    assert [file.name for file in tmp_path.iterdir()] == ["nas.log"]  # the lock is given back


@pytest.mark.parametrize("tail", [b"{", b"\0" * 100, b"\xff\xfe", b"1", b'{"op_code"', b"\n", b"x\n"])
def test_a_tail_that_is_no_record_at_all(journal, tmp_path, tail):
    path = tmp_path / "nas.log"
    path.write_bytes(journal + tail)
    assert repair_journal(path)
    assert path.read_bytes() == journal
    path.write_bytes(tail)
    assert repair_journal(path)
    assert path.read_bytes() == b""


def test_a_journal_that_may_not_be_written_is_read(journal, tmp_path, monkeypatch):
    path = tmp_path / "nas.log"
    path.write_bytes(journal[:-5])

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(journals.JournalFileSymlinkLock, "acquire", refused)
    assert not repair_journal(path)
    assert states(path) == TORN


def test_the_command_and_the_example_open_journals_so(journal, tmp_path, capsys, caplog):
    from optuna_aznas import cli

    path = tmp_path / "nas.log"
    path.write_bytes(journal[:-5])
    assert cli.main(["top", "--storage", f"journal:{path}"]) == 0
    assert path.read_bytes() == journal[: last(journal)]
    assert "was torn" in caplog.text
