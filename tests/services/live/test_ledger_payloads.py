"""What the lines of the ledger hold is read as it was written, also by a release with fewer or with more fields."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from rareclass.adapters.store import LedgerEntry, Store
from rareclass.services.live.ledger import Action, Paged, RepairBegun, RepairEnded
from rareclass.services.promotion import Move, current, moves

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def stored(folder: Path, kind: str, payload: dict[str, object]) -> LedgerEntry:
    with Store(f"sqlite:///{folder}/store.db") as store:
        store.migrate()
        store.append("fraud", f"{kind}:1", kind, "somebody", "because", payload, NOW)
        return store.entries("fraud")[-1]


def test_a_repair_comes_back_from_the_ledger_and_one_of_an_older_release_has_no_owner(tmp_path: Path) -> None:
    begun = RepairBegun(3, "retrain", "abc", "7", {"graduates": True, "new_positives": 12}, "argo")
    entry = stored(tmp_path, "repair", begun.to_json())
    assert RepairBegun.of(entry) == begun
    assert begun.graduates
    del entry.payload["owner"], entry.payload["evidence"]
    assert RepairBegun.of(entry) == RepairBegun(3, "retrain", "abc", "7")
    assert not RepairBegun.of(entry).graduates
    entry.payload["priority"] = "of a newer release"
    assert RepairBegun.of(entry).number == 3


def test_how_a_repair_ended_comes_back_at_the_time_of_its_line_with_missing_numbers_as_null(tmp_path: Path) -> None:
    action = Action(NOW, "retrain", "7", "8", "done", "it wins", {"ap": 0.5, "low": float("nan"), "rows": np.int64(9)})
    entry = stored(tmp_path, "outcome", RepairEnded(3, "retrain", "abc", action).to_json())
    found = RepairEnded.of(entry)
    assert (found.number, found.verdict, found.fingerprint) == (3, "retrain", "abc")
    assert found.action == Action(entry.at, "retrain", "7", "8", "done", "it wins", {"ap": 0.5, "low": None, "rows": 9})


def test_a_page_and_a_move_come_back_and_versions_are_text(tmp_path: Path) -> None:
    paged = Paged("abc", "7", {"broken": ["amount"]})
    assert Paged.of(stored(tmp_path, "page", paged.to_json())) == paged
    before = {"champion": "1", "challenger": None, "previous": None}
    move = Move("promote", "2", "champion", before, {**before, "champion": "2", "previous": "1"}, "because")
    (tmp_path / "moved").mkdir()
    with Store(f"sqlite:///{tmp_path}/moved/store.db") as store:
        store.migrate()
        store.append("fraud", "move:1", "promote", "somebody", "because", {"ap": 0.4, **move.payload()}, NOW)
        store.append("fraud", "page:1", "page", "somebody", "because", paged.to_json(), NOW)
        entries = store.entries("fraud")
    assert [Move.of(entry) for entry in moves(entries)] == [move]
    assert current(entries) == move.aliases
    older = moves(entries)[0]
    older.payload.update(version=2, aliases={"champion": 2})
    assert Move.of(older).aliases == {"champion": "2", "challenger": None, "previous": None}
    assert Move.of(older).version == "2"
