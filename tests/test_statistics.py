"""Statistics of records whose effects are known."""

import json
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from gradient_surgery.statistics import (
    analysis_of_variance, bootstrap_percentiles, describe_effects, effects, factorial, gains, holm,
    in_words, interval_of_mean, marginal_means, name_of, omega_squared, p_value, paired_difference,
    percent, plus_minus, points, ranking, records_of, replicates)
from gradient_surgery.studies import COMPONENTS, IMPACT, PUBLISHED

pytest.importorskip("statsmodels")
FACTORS = ["direction", "pair_weight", "mining"]
LEVELS = {"direction": ("cosine", "euclidean", "geodesic"), "pair_weight": ("constant", "linear"),
          "mining": ("all", "hardest")}


def made_up(seeds=5, noise=0.004, start=0, luck=0.05):
    "mining is worth 0.08, pair_weight 0.02, both together 0.04 more; direction nothing."
    random = np.random.default_rng(start)
    lucky = random.normal(0, luck, seeds)
    records = []
    for *names, seed in product(*LEVELS.values(), range(seeds)):
        setting = dict(zip(FACTORS, names))
        mined, weighed = setting["mining"] == "all", setting["pair_weight"] == "linear"
        value = 0.3 + 0.08 * mined + 0.02 * weighed + 0.04 * (mined and weighed) + lucky[seed]
        records.append({
            "parameters": setting | {"seed": seed},
            "metrics": {"recall@1": value + random.normal(0, noise)}})
    return records


@pytest.fixture(scope="module")
def table():
    return replicates(made_up(), "recall@1", FACTORS)


def by_term(rows):
    return {row["term"]: row for row in rows}


def test_a_table_has_a_row_for_each_seed_and_a_column_for_each_setting(table):
    assert table.shape == (5, 12)
    record = made_up()[17]
    setting = tuple(record["parameters"][name] for name in FACTORS)
    assert table.loc[record["parameters"]["seed"], setting] == record["metrics"]["recall@1"]


def test_a_single_factor_is_a_setting_too():
    records = [
        {"parameters": {"loss": loss, "seed": seed}, "metrics": {"map@r": value}}
        for loss, values in {"A": (0.1, 0.2), "B": (0.3, 0.5)}.items()
        for seed, value in enumerate(values)]
    rows = ranking(replicates(records, "map@r", ["loss"]))
    assert [row["loss"] for row in rows] == ["B", "A"]
    assert rows[1]["difference"] == pytest.approx(-0.25)


def test_two_runs_of_one_setting_and_seed_are_refused():
    records = made_up()
    with pytest.raises(ValueError, match="1 of 61 runs agree"):
        replicates([*records, records[0]], "recall@1", FACTORS)
    with pytest.raises(ValueError, match="name all parameters that vary"):
        replicates(records, "recall@1", ["direction"])


def test_a_seed_without_all_settings_is_left_out_and_told():
    records = [record for record in made_up() if record != made_up()[3]] # one run of seed 3
    with pytest.warns(UserWarning, match="seeds 3 lack"):
        table = replicates(records, "recall@1", FACTORS)
    assert list(table.index) == [0, 1, 2, 4] and table.notna().all(axis=None)


def test_no_whole_replicate_and_no_records_are_errors():
    records = [record for record in made_up(seeds=1)][1:] + made_up(seeds=2)[1:2]
    with pytest.raises(ValueError, match="none of 2 seeds"):
        replicates(records, "recall@1", FACTORS)
    with pytest.raises(ValueError, match="empty"):
        replicates([], "recall@1", FACTORS)


def test_shares_are_those_that_were_made(table):
    rows = by_term(effects(table))
    truth = {"mining": 0.1**2 / 4, "pair_weight": 0.04**2 / 4, "pair_weight × mining": 0.04**2 / 16}
    everything = sum(truth.values()) + 0.004**2
    for term, variance in truth.items():
        assert rows[term]["omega_squared"] == pytest.approx(variance / everything, abs=0.03)
        assert rows[term]["low"] < rows[term]["omega_squared"] < rows[term]["high"]
        assert rows[term]["p"] < 1e-3  # five seeds
    assert abs(rows["direction"]["omega_squared"]) < 0.01 and rows["direction"]["p"] > 0.001


def test_an_interval_holds_the_true_share_about_as_often_as_it_says():
    truth, held = (0.1**2 / 4) / ((0.1**2 + 0.04**2) / 4 + 0.04**2 / 16 + 0.02**2), 0
    for start in range(40):
        rows = effects(replicates(made_up(start=start, noise=0.02), "recall@1", FACTORS), draws=300)
        row = by_term(rows)["mining"]
        held += row["low"] < truth < row["high"]
    assert 32 <= held


def test_the_luck_of_a_seed_changes_no_share():
    unlucky, lucky = (
        effects(replicates(made_up(luck=luck), "recall@1", FACTORS)) for luck in (0, 0.5))
    for one, other in zip(unlucky, lucky):
        for name in ("F", "partial_eta_squared", "omega_squared", "low", "high"):
            assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9), (one["term"], name)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_sums_of_squares_are_those_of_statsmodels(table, order):
    factors, values = factorial(table)
    tested = analysis_of_variance(table, factors, order)
    rest = tested.loc["rest"]
    total = tested["sum_sq"].sum() - tested.loc["seed", "sum_sq"]
    rows = effects(table, order=order)
    assert len(rows) == {1: 3, 2: 6, 3: 7}[order]
    for row in rows:
        term = tested.loc[row["term"]]
        expected = (term["sum_sq"] - term["df"] * rest["mean_sq"]) / (total + rest["mean_sq"])
        assert row["omega_squared"] == pytest.approx(expected, abs=1e-12)


def test_shares_do_not_grow_with_pure_noise():
    shares = [
        omega_squared(factorial(replicates(
            made_up(noise=10, start=start), "recall@1", FACTORS))[1][None], {"mining": (4,)})
        ["mining"][0] for start in range(60)]
    assert abs(np.mean(shares)) < 0.01 # eta squared would be about 1 / 55


def test_a_table_with_a_hole_is_no_factorial(table):
    with pytest.raises(ValueError, match="lacks 1, as"):
        effects(table.drop(columns=table.columns[0]))
    with pytest.raises(ValueError, match="two levels"):
        effects(table[[table.columns[0]]])


def test_one_seed_gives_shares_but_no_intervals():
    rows = by_term(effects(replicates(made_up(seeds=1), "recall@1", FACTORS)))
    assert rows["mining"]["omega_squared"] > 0.5
    assert math.isnan(rows["mining"]["low"]) and math.isnan(rows["mining"]["high"])


def test_the_bootstrap_of_a_mean_agrees_with_student():
    values = np.random.default_rng(0).normal(size=8)
    drawn = values[np.random.default_rng(1).integers(8, size=(200000, 8))].mean(1)
    widths = np.diff(np.percentile(drawn, bootstrap_percentiles(8))), np.diff(interval_of_mean(values))
    assert widths[0] == pytest.approx(widths[1], rel=0.12)
    assert np.diff(np.percentile(drawn, (2.5, 97.5))) < 0.9 * widths[1]


def test_means_of_levels_and_pairs_of_levels(table):
    rows = {row["mining"]: row for row in marginal_means(table, "mining")}
    assert rows["all"]["mean"] - rows["hardest"]["mean"] == pytest.approx(0.1, abs=0.004)
    assert rows["all"]["low"] < rows["all"]["mean"] < rows["all"]["high"]
    pairs = marginal_means(table, ["pair_weight", "mining"])
    assert len(pairs) == 4
    best = max(pairs, key=lambda row: row["mean"])
    assert (best["pair_weight"], best["mining"]) == ("linear", "all")
    assert best["mean"] == pytest.approx(table.xs(("linear", "all"), axis=1, level=[1, 2]).mean(axis=None))


def test_a_pairing_cancels_the_luck_of_the_seed(table):
    first, second = table["cosine", "linear", "all"], table["cosine", "constant", "all"]
    assert first.std() > 0.015 # the luck
    row = paired_difference(first, second)
    assert row["low"] < 0.06 < row["high"] and row["high"] - row["low"] < 0.03
    assert row["p"] < 0.001
    from scipy.stats import ttest_rel
    assert row["p"] == pytest.approx(ttest_rel(first, second).pvalue)


def test_equal_settings_and_single_seeds_can_be_compared():
    assert paired_difference([0.1, 0.2], [0.1, 0.2])["p"] == 1
    assert math.isnan(paired_difference([0.2], [0.1])["p"])
    assert paired_difference([0.2], [0.1])["difference"] == pytest.approx(0.1)


def test_a_ranking_is_by_mean_with_differences_to_the_best(table):
    rows = ranking(table)
    assert [row["mean"] for row in rows] == sorted((row["mean"] for row in rows), reverse=True)
    best = rows[0]
    assert (best["pair_weight"], best["mining"]) == ("linear", "all")
    assert best["difference"] == 0 and math.isnan(best["p"])
    same = [row for row in rows[1:] if (row["pair_weight"], row["mining"]) == ("linear", "all")]
    assert not any(row["p_holm"] < 0.05 for row in same)
    assert all(row["p_holm"] < 0.05 for row in rows if row["mining"] == "hardest")


def test_a_ranking_against_a_setting_of_ones_own(table):
    reference = ("geodesic", "constant", "hardest")
    rows = {tuple(row[name] for name in FACTORS): row for row in ranking(table, reference)}
    assert math.isnan(rows[reference]["p"])
    assert rows["cosine", "linear", "all"]["difference"] == pytest.approx(0.14, abs=0.01)
    with pytest.raises(ValueError, match="reference"):
        ranking(table, ("geodesic", "constant", "easiest"))


def test_holm_multiplies_the_smallest_p_by_the_number_of_comparisons(table):
    rows = [row for row in ranking(table) if not math.isnan(row["p"])]
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(len(rows) * smallest["p"])
    assert all(row["p_holm"] >= row["p"] for row in rows)


def test_holm_errs_no_oftener_than_it_says():
    "Twenty experiments without any effect: seldom is any difference taken for real."
    wrong = 0
    for start in range(20):
        random = np.random.default_rng(start)
        records = [
            {"parameters": {"loss": loss, "seed": seed}, "metrics": {"recall@1": random.normal()}}
            for loss in range(4) for seed in range(5)]
        rows = ranking(replicates(records, "recall@1", ["loss"]), (0,))
        wrong += any(row["p_holm"] < 0.05 for row in rows)
    assert wrong <= 4


@pytest.fixture(scope="module")
def compositions():
    "Recall of all compositions: semi-hard mining is worth 0.05, the rest is noise."
    random, lucky = np.random.default_rng(0), np.random.default_rng(1).normal(0, 0.1, 5)
    table = pd.DataFrame({
        names: 0.4 + 0.05 * (names[3] == "semihard") + lucky + random.normal(0, 0.001, 5)
        for names in product(*(IMPACT[component] for component in COMPONENTS))})
    table.columns.names = COMPONENTS
    return table


def test_a_gain_is_the_paired_difference_to_the_recipient_as_it_was(compositions):
    rows = gains(compositions)
    of = {(row["recipient"], row["donor"], row["component"]): row for row in rows}
    to_semihard, away = of["triplet", "FaceNet", "mining"], of["FaceNet", "circle", "mining"]
    assert to_semihard["difference"] == pytest.approx(0.05, abs=0.003)
    assert away["difference"] == pytest.approx(-0.05, abs=0.003)
    assert to_semihard["p_holm"] < 0.05 and away["p_holm"] < 0.05
    other = of["triplet", "FaceNet", "direction"]
    assert other["p_holm"] > 0.05 and abs(other["difference"]) < 0.003


def test_every_change_is_a_graft_and_each_is_corrected_for_once(compositions):
    rows = gains(compositions)
    changes = {
        (component, recipient, donor)
        for place, component in enumerate(COMPONENTS)
        for recipient, donor in product(PUBLISHED, PUBLISHED)
        if PUBLISHED[recipient][place] != PUBLISHED[donor][place]}
    assert {(row["component"], row["recipient"], row["donor"]) for row in rows} == changes
    distinct = {row["graft"] for row in rows}
    assert len(distinct) < len(rows)
    smallest = min(rows, key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(len(distinct) * smallest["p"])


def test_grafts_that_were_not_run_are_left_out(compositions):
    known = [setting for setting in compositions if setting[3] != "semihard"]
    rows = gains(compositions[known])
    assert rows and not any("FaceNet" == row["recipient"] for row in rows)
    assert gains(compositions[known[:1]]) == []


def test_holm_is_holms():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and all(map(math.isnan, holm([0.1, math.nan])))


def test_the_sentence_follows_the_numbers(table):
    rows = effects(table)
    text = describe_effects(rows)
    assert text.startswith("Of the components by themselves, **mining") and "lies above" in text
    swapped = [row | {"term": {"mining": "direction", "direction": "mining"}.get(row["term"], row["term"])}
               for row in rows]
    assert describe_effects(swapped).startswith("Of the components by themselves, **direction")
    pair = [row | {"omega_squared": 1 - 0.1 * (" × " not in row["term"])} for row in rows]
    assert "explains more than any component by itself" in describe_effects(pair)
    assert "explains more" not in text
    unsure = [row | {"low": -1.0, "high": 2.0} for row in rows]
    assert "does not lie above" in describe_effects(unsure)
    alone = effects(replicates(made_up(seeds=1), "recall@1", FACTORS))
    assert "nan" not in describe_effects(alone) and "interval" not in describe_effects(alone)


def test_numbers_as_text():
    assert percent(0.1234) == "12.3 %" and percent(-0.0001) == "0.0 %"
    assert percent(0.5, 0.4, 0.6) == "50.0 % (40.0 to 60.0)"
    assert points(-0.01234) == "-1.23" and points(0.01, -0.01, 0.03) == "+1.00 (-1.00 to +3.00)"
    assert plus_minus(0.5) == "50.00" and plus_minus(0.5, 0.01) == "50.00 ± 1.00"
    assert (p_value(0.0004), p_value(0.25), p_value(math.nan)) == ("< 0.001", "0.250", "–")
    assert in_words(["pair_weight", "a", "b"]) == "pair weight, a and b" and in_words([]) == "none"


def test_a_run_is_named_by_its_composition_or_its_loss():
    assert name_of({"loss": "CircleLoss", "seed": 3}) == "Circle"
    assert name_of({"mining": "easy_positive_hard", "loss": "GradientSurgery"}).endswith("easy positive hard")
    assert name_of({"loss_options": {"direction": "geodesic"}}).startswith("geodesic, ")
    assert name_of({}).count(", ") == 3


def test_records_of_a_folder_are_read_and_told(tmp_path):
    record = {"experiment": "impact", "selected_on": "nothing", "seconds": 1.0, "device": "cpu",
              "commit": "abc", "versions": {}}
    lines = [json.dumps(record | made) for made in made_up(seeds=2)]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    records, where = records_of("impact", tmp_path)
    assert len(records) == 24 and where.startswith("24 runs with 2 seeds, made at commit abc")


def test_trainings_are_not_made_by_a_page(tmp_path):
    records, where = records_of("end_to_end", tmp_path)
    assert records == [] and "no records of end_to_end" in where


def page_on(records, page, root, folder, monkeypatch):
    "What a page of the paper says about records, as text."
    nbformat = pytest.importorskip("nbformat")
    write_kernel_spec = pytest.importorskip("ipykernel.kernelspec").write_kernel_spec
    from gradient_surgery.experiments import run_notebook

    (folder / "impact").mkdir()
    (folder / "impact" / "records.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in records))
    write_kernel_spec(folder / "kernels" / "python3")
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    notebook = root / "nbs" / "paper" / f"{page}.ipynb"
    names = {"impact": {"records": str(folder / "impact"), "end_to_end": str(folder / "none")},
             "graft": {"impact": str(folder / "impact")}}
    executed = nbformat.read(
        run_notebook(notebook, folder / "executed.ipynb", names[page]), as_version=4)
    return "\n".join(
        output["data"].get("text/markdown", "") for cell in executed.cells
        for output in cell.get("outputs", []) if "data" in output)


@pytest.fixture(scope="module")
def impact_records(compositions):
    "The same as records, with both rules for the step; with equal steps nothing matters."
    random = np.random.default_rng(2)
    return [
        {"experiment": "impact", "selected_on": "map@r on held-out classes", "seconds": 1.0,
         "device": "cpu", "commit": "abc", "versions": {},
         "parameters": dict(zip(COMPONENTS, names)) | {"seed": seed, "step": step},
         "metrics": {
             "recall@1": value, "map@r": value / 2, "validation map@r": value / 2,
             "validation recall@1": value, "learning_rate": 0.004}}
        for names in compositions for seed in range(3) for step in ("adam", "equal")
        for value in [compositions[names][seed] if step == "adam" else 0.4 + random.normal(0, 0.001)]]


def test_the_page_of_the_impact_says_what_the_records_say(impact_records, root, tmp_path, monkeypatch):
    text = page_on(impact_records, "impact", root, tmp_path, monkeypatch)
    assert "1,080 runs with 3 seeds" in text
    assert "**With Adam.** Of the components by themselves, **mining 9" in text
    with_equal_steps = text[text.index("**With equal steps.**"):][:200]
    assert "%" in with_equal_steps and "**mining 9" not in with_equal_steps
    assert "There are no records of end_to_end here." in text and "nan" not in text


def test_the_page_of_grafts_says_what_the_records_say(impact_records, root, tmp_path, monkeypatch):
    text = page_on(impact_records, "graft", root, tmp_path, monkeypatch)
    assert "Exchanging the mining changes a loss the most" in text
    assert "with the mining of FaceNet" in text and "nan" not in text
