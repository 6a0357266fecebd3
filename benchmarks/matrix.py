"""Is a saved folder loaded, without this package, by every release of transformers that it should be, and equally?

    python -m benchmarks.matrix                  the releases that `choose` names
    python -m benchmarks.matrix 5.18.0 5.24.0    these releases

Each release is installed from the package registry into a virtual environment in a temporary folder, which shares the
torch of this one. There a trained toy model of each architecture is loaded with `trust_remote_code=True`, and exports
to transformers' own classes without it. Their answers (`answer`) must equal those of this process, bit for bit. A
release outside the range in `configuration_gptlite.py` must load the tokenizer of every folder, and refuse all models
but the exports with the sentence in that file.
"""

import argparse
import inspect
import os
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

import torch
import transformers
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from benchmarks.golden import ARCHITECTURES, train_golden
from modeling_gptlite.interchange import convert


LOADABLE = SpecifierSet(">=5.4,<6")  # what `configuration_gptlite.py` accepts
NATIVE = SpecifierSet(">=4.51")  # has Qwen3
EXPORTS = {"qwen3": "modern", "gpt2": "nanogpt"}  # the class and the architecture that is exported to it


def answer(folder: str, is_native: bool) -> dict:
    """What the model in `folder` computes and generates: past its context, unless it is an export.

    A process without this package runs the source of this function, so it uses nothing from outside.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=not is_native).eval()
    prompts = ["12 sheep", "3 sheep jump"]
    settings = {"max_new_tokens": 20 if is_native else 64, "do_sample": False}
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    one = {name: values[1:] for name, values in batch.items()}
    with torch.no_grad():
        return {
            "logits": model(**one).logits,
            "padded logits": model(**batch).logits[batch["attention_mask"] == 1],
            "loss": model(**one, labels=one["input_ids"]).loss,
            "tokens": model.generate(**one, **settings),
            "uncached tokens": model.generate(**one, **settings, use_cache=False),
            "padded tokens": model.generate(**batch, **settings),
            "beams": model.generate(**batch, **settings, num_beams=3),
            "pipeline": pipeline("text-generation", model=model, tokenizer=tokenizer)(prompts[1], **settings),
        }


LOAD = f"""
import importlib.util, sys, torch
assert importlib.util.find_spec("modeling_gptlite") is None, "the package is installed in this environment"
{inspect.getsource(answer)}
folder, is_native = sys.argv[1], sys.argv[2] == "True"
torch.save(answer(folder, is_native), f"{{folder}}/answer.pt")
"""


def supported() -> SpecifierSet:
    """The releases of transformers that the package itself runs on, from `pyproject.toml`."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    (line,) = (line for line in project["project"]["dependencies"] if line.startswith("transformers"))
    return SpecifierSet(line.removeprefix("transformers"))


def choose(releases: list[Version]) -> list[Version]:
    """Of all releases: the oldest and newest that only exports load in, the last one that is refused in the same major
    version, the oldest, a middle one and the newest that models load in, and the oldest that the package runs on.

    The middle one is the last patch of its minor version, between the two oldest.
    """
    good = sorted(LOADABLE.filter(releases))
    own = sorted(supported().filter(good))
    before = sorted(release for release in NATIVE.filter(releases) if release < good[0])
    last_major = [release for release in before if release.major < good[0].major]
    minors = {release.release[:2]: release for release in good if release < own[0]}
    middle = list(minors.values())[len(minors) // 2]
    return [last_major[0], last_major[-1], before[-1], good[0], middle, own[0], good[-1]]


def all_releases() -> list[Version]:
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("Available versions: "))
    return [Version(text) for text in line.removeprefix("Available versions: ").split(", ")]


def train_models(folder: Path) -> dict[str, dict]:
    """Train a toy model of each architecture in `folder/NAME`, and export some; returns the answers of all here."""
    for name in ARCHITECTURES:
        train_golden(f"{name}, adamw", folder)
        (folder / f"{name}, adamw").rename(folder / name)
    for name, source in EXPORTS.items():
        convert(folder / source, folder / f"{name} export", target_format=name)
    names = [*ARCHITECTURES, *(f"{name} export" for name in EXPORTS)]
    return {name: answer(str(folder / name), is_export(name)) for name in names}


def is_export(name: str) -> bool:
    return name.endswith(" export")


def make_environment(folder: Path, release: Version) -> Path:
    """A virtual environment with this release of transformers and the torch of this one; returns its interpreter."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    command = [python, "-m", "pip", "install", "--quiet", f"transformers=={release}"]
    installation = subprocess.run(command, capture_output=True, text=True)
    if installation.returncode:
        raise SystemExit(f"cannot install transformers {release}: {installation.stderr}")
    return python


def load(python: Path, folder: Path) -> tuple[dict | None, str]:
    """What the model in `folder` answers under this interpreter; or None, and the last line of the error."""
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-I", "-c", LOAD, str(folder), str(is_export(folder.name))]
    process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        return None, process.stderr.strip().splitlines()[-1]
    return torch.load(folder / "answer.pt"), ""


def judge(answer: dict | None, error: str, expected: dict, is_loadable: bool) -> tuple[bool, str]:
    """Whether a release did as it should, and what it did in words."""
    if answer is None:
        return not is_loadable and "GPTLite needs transformers" in error, error
    differ = [name for name, value in expected.items() if not is_equal(answer[name], value)]
    if differ:
        return False, f"{', '.join(differ)} differ"
    return is_loadable, f"{', '.join(expected)} equal"


def is_equal(first, second) -> bool:
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", type=Version, help="default: chosen from the registry")
    releases = parser.parse_args(argv).releases or choose(all_releases())
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        answers = train_models(Path(folder))
        print(f"trained with transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
        for release in releases:
            python = make_environment(Path(folder) / str(release), release)
            for name, expected in answers.items():
                answer, error = load(python, Path(folder) / name)
                is_right, found = judge(answer, error, expected, release in (NATIVE if is_export(name) else LOADABLE))
                failures += not is_right
                print(f"{release!s:9}{name:14}{'ok' if is_right else 'FAILED':8}{found}", flush=True)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
