"""The tables under `records` are what their records say, to the letter."""

from pathlib import Path

import pytest

from gradient_surgery.records import FORMATS, Table, read_records

RECORDS = Path(__file__).resolve().parent.parent / "records"
EXPERIMENTS = sorted({path.relative_to(RECORDS).parts[0] for name in ("record.json", "records.jsonl") for path in RECORDS.rglob(name)})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_records_and_their_table(experiment: str) -> None:
    records = read_records(RECORDS / experiment)  # checks each
    assert {record["experiment"] for record in records} == {experiment}
    seen = [str(sorted(record["parameters"].items())) for record in records]
    assert len(set(seen)) == len(seen), "a run was made twice"
    written = {path.suffix[1:]: path.read_text(encoding="utf-8") for path in (RECORDS / experiment).glob("table.*")}
    table = Table(records)
    for suffix, text in written.items():
        assert text == FORMATS[suffix](table), f"gradient_surgery table {experiment} --output records/{experiment}"


def test_a_table_notices_another_number() -> None:
    records = read_records(RECORDS / "quickstart")
    before = Table(records).csv()
    records[0]["metrics"]["recall@1"] += 1e-9
    assert Table(records).csv() != before
