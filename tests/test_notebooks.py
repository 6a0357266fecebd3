"""The notebooks run from a clean kernel to the end, shortened by the variables that they read."""

import pytest
from helpers import ROOT, save_base


nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


def run(name, folder, monkeypatch, **environment) -> str:
    """Execute a notebook in a copy of what it needs; returns all that it printed."""
    for part in ("scripts", "modeling_gptlite", "tokenization", "recipes"):
        (folder / part).symlink_to(ROOT / part)
    (folder / "notebooks").mkdir()
    for variable, value in {"PYTHONPATH": str(ROOT), **environment}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=240, resources={"metadata": {"path": str(folder / "notebooks")}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    return f"{printed}\n{pictures} pictures"


def test_the_tour_goes_from_text_to_a_push(tmp_path, monkeypatch):
    short = {"GPTLITE_TOUR_STEPS": "4", "GPTLITE_TOUR_TEXT": "python-docs"}
    printed = run("gptlite_tour.ipynb", tmp_path, monkeypatch, **short)
    for told in (
        "tokens in the vocabulary",
        "parameters",
        "stopped at step 3 with a checkpoint",
        "learning_rate was 0.006 and is now 1.0",
        "resuming from checkpoint-3",
        "step 4/4",
        "temperature 1.5",
        "true text",
        "model.safetensors",
    ):
        assert told in printed
    assert "3 pictures" in printed
    assert (tmp_path / "out" / "tour" / "model.safetensors").exists()


def test_fine_tuning_goes_from_a_base_to_a_push(tmp_path, text_file, monkeypatch):
    base = save_base(tmp_path / "base", "gpt_neox", text_file.read_text())
    given = {"GPTLITE_MODEL": str(base), "GPTLITE_TEXT": f"--train_file={text_file}", "GPTLITE_MINUTES": "0.2"}
    printed = run("finetune_from_the_hub.ipynb", tmp_path, monkeypatch, **given)
    for told in ("fine-tuning all weights", "bits per character", "before,", "model.safetensors"):
        assert told in printed


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_committed_small_and_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert path.stat().st_size < 50_000
