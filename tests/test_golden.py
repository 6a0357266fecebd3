"""Golden runs: losses and weights of toy runs equal their records in `tests/golden/`."""

import json

import pytest

from benchmarks.golden import RECORDS, RUNS, cpu_kind, difference, expected, main, record_path, train_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    train_golden("modern, adamw", folder)  # LoRA starts from it
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_equal_their_record(name, folder, tmp_path):
    recorded, exact = expected()
    run = train_golden(name, folder if "model_name_or_path" in RUNS[name] else tmp_path)
    assert difference(name, run, recorded[name], exact) is None


def test_every_record_holds_every_run():
    records = list(RECORDS.glob("*.json"))
    assert records
    for path in records:
        assert json.loads(path.read_text()).keys() == RUNS.keys(), f"write {path.name} again: make golden UPDATE=1"


RUN = {"weights": "ab", "losses": [3.0, 2.0], "validation": [2.5]}


@pytest.mark.parametrize(
    ("changed", "exact", "words"),
    [
        ({}, True, None),
        ({"weights": "cd"}, True, "equal losses; weights differ"),
        ({"losses": [3.0, 2.001]}, True, "losses differ from step 2 on, by up to 0.001; weights equal"),
        ({"validation": [2.6]}, True, "losses differ only in validation, by up to 0.1"),
        ({"weights": "cd", "losses": [3.0, 2.001]}, False, None),
        ({"validation": [2.6]}, False, "by up to 0.1, more than 0.01"),
    ],
)
def test_a_difference_is_described(changed, exact, words):
    found = difference("modern, adamw", {**RUN, **changed}, RUN, exact)
    assert found is None if words is None else words in found


def test_a_run_that_moved_is_a_line_of_the_table_and_the_exit_code(tmp_path, monkeypatch, capsys):
    from benchmarks import golden

    name = "modern, adamw"
    monkeypatch.setattr(golden, "RUNS", {name: RUNS[name]})
    monkeypatch.setattr(golden, "RECORDS", tmp_path)
    main(["--update"])
    record = json.loads(record_path().read_text())
    record[name]["losses"][4] += 0.5
    record_path().write_text(json.dumps(record))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="True"):
        main([])
    header, line = capsys.readouterr().out.splitlines()
    assert cpu_kind() in header
    assert "losses differ from step 5 on, by up to 0.5; weights equal" in line
