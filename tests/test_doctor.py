"""The doctor measures, never guesses, and has a remedy for each shortcoming."""

import json

import pytest

from agp import blas
from agp.footprint import GB, SHAPES
from scripts import cli, doctor

WELL = {
    "blas": "accelerate",
    "matmul_gflops": 5000.0,
    "metal": True,
    "core_ml": {"convert": True, "predict": True},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
    "hub_cache": "hub",
    "hub_free_gb": 100.0,
}
FITS = [{"table": "memory"}]
E2B = SHAPES[0]


def test_the_report_reads_well_in_a_hundred_columns(capsys):
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert all(
        len(line) <= 100 for line in shown.splitlines() if not line.startswith(("chip", "Hub cache", "libraries"))
    )
    assert all(shape.name in shown for shape in SHAPES)
    assert "What to do" in shown


def test_json_holds_the_same(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["blas"] == blas.state and made["matmul_gflops"] > 0
    assert 0 < made["usable_gb"] <= made["memory_gb"] and made["hub_free_gb"] > 0
    assert len(made["fits"]) == 3 * len(SHAPES) and isinstance(made["advice"], list)


def test_a_machine_that_is_well_gets_no_advice():
    assert doctor.advice(WELL, FITS) == []


@pytest.mark.parametrize(
    "shortcoming, remedy",
    [
        ({"blas": "reference"}, "apt-get install libopenblas0-pthread"),
        ({"blas": "late"}, "import agp first"),
        ({"blas": "openblas", "matmul_gflops": 5.0}, "OPENBLAS_NUM_THREADS"),
        ({"metal": False}, "train in float32"),
        ({"core_ml": {"convert": False, "predict": False}}, "pip install coremltools"),
        ({"core_ml": {"convert": True, "predict": False}}, "needs a Mac"),
        ({"versions": {"torch": None, "transformers": None, "peft": "1"}}, "No torch, transformers, which"),
        ({"hub_free_gb": 3.0}, "HF_HOME"),
    ],
)
def test_each_shortcoming_has_its_remedy(shortcoming, remedy):
    (step,) = doctor.advice({**WELL, **shortcoming}, FITS)
    assert remedy in step


def test_what_fits_is_part_of_the_advice():
    assert "tiny models" in doctor.advice(WELL, [{"table": None}])[0]
    assert "SSD" in doctor.advice(WELL, [{"table": "disk"}])[0]


@pytest.mark.parametrize("room, table", [(20, "memory"), (12.7, "memory"), (8, "disk"), (4, None)])
def test_the_table_goes_to_disk_before_the_model_is_refused(room, table):
    row = doctor.fit(E2B, "bf16", room * GB)
    assert row["table"] == table
    assert (row["context"] > 0) == (table is not None)


def test_more_memory_never_fits_less():
    for shape in SHAPES:
        rows = [doctor.fit(shape, "4 bits", room * GB) for room in range(1, 40)]
        leaner = [row for row in rows if row["table"] != "memory"]
        assert [row["context"] for row in leaner] == sorted(row["context"] for row in leaner)
        assert rows[-1]["table"] == "memory" and rows[-1]["context"] == shape.context


def test_a_path_that_is_not_there_yet_has_its_parents_space(tmp_path):
    assert doctor.disk_free(tmp_path / "a" / "b") == pytest.approx(doctor.disk_free(tmp_path), rel=0.01)
