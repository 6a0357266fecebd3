"""The files of a Space on the Hub that serves a page for a model.

files = space_files("static", Path("out/quickstart"), "user/name")
"""

import tempfile
from pathlib import Path

from huggingface_hub import SpaceCardData

from ..hub import ADAPTER_CONFIG
from .website import PageError, write_website


PACKAGE = Path(__file__).parents[1]
APP = """from modeling_gptlite.page.app import launch
from modeling_gptlite.page.tracing import load


launch([load({model_id!r})])
"""
REQUIREMENTS = "torch\ntransformers>=5.17,<6\n"
APP_FILES = {"gradio": "app.py", "static": "index.html"}


def space_files(sdk: str, model: Path, model_id: str) -> dict[str, bytes]:
    """By path: everything that the Space consists of, its card included.

    Args:
        sdk: One of `APP_FILES`.
        model: Folder of the model.
        model_id: Its name on the Hub.

    Raises:
        UserError: There is no such kind of Space, or the model cannot be exported for the browser.
    """
    if sdk not in APP_FILES:
        raise PageError(f"--space_sdk must be {' or '.join(APP_FILES)}, got {sdk!r}")
    files, title = _static(model) if sdk == "static" else _gradio(model, model_id), model_id.split("/")[-1]
    license = "mit" if sdk == "gradio" else None  # of this package; a static Space holds the model, too
    data = SpaceCardData(title=title, sdk=sdk, app_file=APP_FILES[sdk], license=license, models=[model_id])
    card = f"---\n{data.to_yaml()}\n---\n\nA page to try [{model_id}](https://huggingface.co/{model_id}).\n"
    return {"README.md": card.encode(), **files}


def _gradio(model: Path, model_id: str) -> dict[str, bytes]:
    """The app loads the published model with this package, which is part of the Space, so it runs no other code."""
    sources = [*PACKAGE.glob("*.py"), *(path for path in PACKAGE.glob("page/*") if path.is_file())]
    files = {path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes() for path in sorted(sources)}
    requirements = REQUIREMENTS + ("peft\n" if (model / ADAPTER_CONFIG).exists() else "")
    return {"app.py": APP.format(model_id=model_id).encode(), "requirements.txt": requirements.encode(), **files}


def _static(model: Path) -> dict[str, bytes]:
    """The model is part of the Space, so the page shows this version of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_website(str(model), folder)
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
