"""`rareclass init`: a configuration drafted from a table, which the parser reads and a person checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rareclass import cli, config


def call(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def payments(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = 600
    frame = pd.DataFrame(
        {
            "payment_id": [f"p{number:05d}" for number in range(rows)],
            "card_id": rng.integers(0, 90, rows),
            "booked_at": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows), unit="h"),
            "amount": rng.lognormal(3, 1, rows).round(2),
            "online": rng.random(rows) < 0.4,
            "is_fraud": np.where(rng.random(rows) < 0.05, "yes", "no"),
        }
    )
    frame.to_csv(tmp_path / "Payments 2024.csv", index=False)
    return tmp_path / "Payments 2024.csv"


def test_roles_are_guessed_and_the_file_is_one_that_the_parser_reads(payments: Path, tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    assert call(["init", str(payments), "--target", "is_fraud", "--out", str(out)]) == 0
    read = config.load(out)
    assert read.name == "payments-2024"
    assert (read.data.target, read.data.positive) == ("is_fraud", "yes")
    assert (read.data.time, read.data.id, read.data.entity, read.data.amount) == (
        "booked_at",
        "payment_id",
        "card_id",
        "amount",
    )
    assert out.read_text().startswith("# yaml-language-server: $schema=rareclass.schema.json")
    assert (tmp_path / "rareclass.schema.json").is_file()


def test_without_a_target_it_says_what_could_be_one_and_writes_nothing(
    payments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["init", str(payments), "--out", str(tmp_path / "my.yaml")]) == 2
    said = capsys.readouterr().err
    assert "--target" in said
    assert "is_fraud ('yes' in" in said
    assert said.index("is_fraud") < said.index("online")
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    ("target", "words"), [("is_fruad", "Did you mean 'is_fraud'"), ("amount", "has not two values")]
)
def test_a_column_that_cannot_be_the_truth_is_refused(
    payments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    assert call(["init", str(payments), "--target", target, "--out", str(tmp_path / "my.yaml")]) == 2
    assert words in capsys.readouterr().err


def test_a_configuration_that_exists_is_left_as_it_is(payments: Path, tmp_path: Path) -> None:
    out = tmp_path / "my.yaml"
    out.write_text("mine")
    assert call(["init", str(payments), "--target", "is_fraud", "--out", str(out)]) == 2
    assert out.read_text() == "mine"
