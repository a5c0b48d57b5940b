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


def test_one_seed_is_counted_once() -> None:
    records = read_records(RECORDS / "collapse")
    with pytest.raises(ValueError, match="two records have seed 0"):
        Table([*records, records[0] | {"seconds": 1.0}])


def test_end_to_end_are_the_leading_and_the_trailing() -> None:
    "The places that a comment in `studies` gives to the compositions that are trained end to end."
    from gradient_surgery.statistics import ranking, replicates
    from gradient_surgery.studies import COMPONENTS, END_TO_END
    from gradient_surgery.surgery import GradientSurgery

    runs = [record for record in read_records(RECORDS / "impact") if record["parameters"]["step"] == "adam"]
    ranked = ranking(replicates(runs, "validation map@r", list(COMPONENTS)))
    order = [tuple(row[name] for name in COMPONENTS) for row in ranked]
    chosen = [tuple(options[name] for name in COMPONENTS) for options in END_TO_END["loss_options"]]
    assert set(chosen[:2]) <= set(order[:3]) and set(chosen[2:]) <= set(order[-4:]) and chosen[3] == order[-1]
    assert chosen[1] == tuple(GradientSurgery().components)
