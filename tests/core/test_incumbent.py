"""A champion answers the same question, reads what is there, and is judged on rows it has not seen, or it is not
compared.
"""

import numpy as np
import pytest

import small_model
from rareclass.config import DataSettings
from rareclass.core.dataset import OTHER, Feature, Rows, Schema
from rareclass.core.incumbent import covers, other_question, unseen

DATA = DataSettings(path="x.parquet", target="label")


def kinds(*levels: str) -> Schema:
    return Schema((Feature("amount"), Feature("kind", "categorical", levels)))


@pytest.mark.parametrize(
    ("then", "now"), [(1, "1"), (1, 1.0), (True, 1), ("true", True), ("Yes", "Yes "), (0, "false")]
)
def test_one_rare_class_written_in_two_ways_is_one_question(then: object, now: object) -> None:
    assert other_question({"target": "label", "positive": then}, DATA, now) is None


def test_another_target_or_another_rare_class_is_another_question() -> None:
    assert "learned 'fraud'" in str(other_question({"target": "fraud"}, DATA, 1))
    assert "rare class is '0'" in str(other_question({"target": "label", "positive": 0}, DATA, 1))


def test_rows_cover_a_schema_only_where_no_level_of_it_was_pooled_or_unknown() -> None:
    assert covers(kinds("a", "b", "c"), kinds("b", "a"))
    assert covers(kinds("a", "b", OTHER), kinds("a", OTHER))
    assert not covers(kinds("a", "b"), kinds("a", "b", "c"))
    assert not covers(kinds("a", "b"), kinds("a", OTHER))
    assert not covers(kinds("a"), Schema((Feature("gone"),)))
    assert not covers(Schema((Feature("kind"),)), Schema((Feature("kind", "categorical", ("a",)),)))


def test_rows_are_known_again_by_time_or_by_ids_of_one_making_and_never_guessed() -> None:
    from dataclasses import replace

    schema = small_model.SCHEMA
    ids = np.arange(4, dtype=np.uint64)
    rows = Rows(schema, np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), ids)
    trained = replace(small_model.model(), trained_ids=ids[:2])
    assert unseen(trained, rows, DATA).tolist() == [2, 3]  # type: ignore[union-attr]
    other = replace(rows, schema=Schema((Feature("amount"),)))
    assert unseen(trained, other, DATA) is None, "the ids are of other content"
    assert unseen(small_model.model(), rows, DATA) is None, "nothing says what it was trained on"
    timed = replace(rows, time=np.array(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"], "datetime64[us]"))
    until = small_model.model(trained={"until": "2024-01-02T00:00:00"})
    assert unseen(until, timed, DATA).tolist() == [2, 3]  # type: ignore[union-attr]
