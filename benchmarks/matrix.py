"""Is a saved folder loaded, without this package, by every supported transformers, and to the same logits?

    python -m benchmarks.matrix                  oldest, middle and newest supported release, and two unsupported ones
    python -m benchmarks.matrix 5.18.0 5.24.0    these releases

Each release is installed from the package registry into a virtual environment in a temporary folder, which shares the
torch of this one. There a trained toy model of each architecture is loaded with `trust_remote_code=True`. Its logits
and the tokens that it generates past its context must equal those computed here, bit for bit. A release outside the
range in `pyproject.toml` must be refused with the sentence of `configuration_gptlite.py`.
"""

import argparse
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
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.golden import ARCHITECTURES, train_golden


PROMPT = "12 sheep"
LOAD = """
import importlib.util, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

assert importlib.util.find_spec("modeling_gptlite") is None, "the package is installed in this environment"
folder, prompt = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
inputs = tokenizer(prompt, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
torch.save({"logits": logits, "tokens": tokens}, f"{folder}/answer.pt")
"""


def supported() -> SpecifierSet:
    """The releases of transformers that `pyproject.toml` allows."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    (line,) = (line for line in project["project"]["dependencies"] if line.startswith("transformers"))
    return SpecifierSet(line.removeprefix("transformers"))


def choose(releases: list[Version], allowed: SpecifierSet) -> list[Version]:
    """Of all releases: the newest of the last major version, the last unsupported one, oldest, middle and newest."""
    good = sorted(allowed.filter(releases))
    before = sorted(release for release in releases if release < good[0])
    last_major = [release for release in before if release.major < good[0].major]
    return [last_major[-1], before[-1], good[0], good[len(good) // 2], good[-1]]


def all_releases() -> list[Version]:
    command = [sys.executable, "-m", "pip", "index", "versions", "transformers"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("Available versions: "))
    return [Version(text) for text in line.removeprefix("Available versions: ").split(", ")]


def train_models(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Train a toy model of each architecture in `folder/NAME`; returns their answers in this process."""
    answers = {}
    for name in ARCHITECTURES:
        train_golden(f"{name}, adamw", folder)
        saved = (folder / f"{name}, adamw").rename(folder / name)
        inputs = AutoTokenizer.from_pretrained(saved)(PROMPT, return_tensors="pt")
        model = AutoModelForCausalLM.from_pretrained(saved)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
            answers[name] = {"logits": model(**inputs).logits, "tokens": tokens}
    return answers


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


def load(python: Path, folder: Path) -> tuple[dict[str, torch.Tensor] | None, str]:
    """What the model in `folder` answers under this interpreter; or None, and the last line of the error."""
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-I", "-c", LOAD, str(folder), PROMPT]
    process = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if process.returncode:
        return None, process.stderr.strip().splitlines()[-1]
    return torch.load(folder / "answer.pt"), ""


def judge(answer, error: str, expected: dict[str, torch.Tensor], is_supported: bool) -> tuple[bool, str]:
    """Whether a release did as it should, and what it did in words."""
    if answer is None:
        return not is_supported and "GPTLite needs transformers" in error, error
    differ = [name for name in expected if not torch.equal(answer[name], expected[name])]
    if differ:
        return False, f"{' and '.join(differ)} differ"
    return is_supported, "logits and generated tokens equal"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", type=Version, help="default: chosen from the registry")
    releases = parser.parse_args(argv).releases or choose(all_releases(), supported())
    torch.set_num_threads(1)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        answers = train_models(Path(folder))
        print(f"trained with transformers {transformers.__version__}, torch {torch.__version__}", flush=True)
        for release in releases:
            python = make_environment(Path(folder) / str(release), release)
            for name, expected in answers.items():
                answer, error = load(python, Path(folder) / name)
                is_right, found = judge(answer, error, expected, release in supported())
                failures += not is_right
                print(f"{release!s:9}{name:9}{'ok' if is_right else 'FAILED':8}{found}", flush=True)
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
