"""The files around the code agree: versions, make targets, the workflow, the changelog."""

import re
import tomllib

import yaml
from conftest import SLOW
from helpers import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PINNED = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
STEPS = [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_hooks_are_the_versions_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repo["repo"].split("/")[-1].removesuffix("-pre-commit"): repo["rev"] for repo in hooks["repos"]}
    assert revisions.items() >= {name: f"v{PINNED[name]}" for name in ("ruff", "codespell")}.items()


def test_the_workflow_calls_targets_that_exist():
    commands = [step["run"] for step in STEPS if "run" in step]
    called = {command.split()[1] for command in commands if command.startswith("make ")}
    assert called == {"lint", "test", "floor", "newest", "matrix", "golden"}
    assert called <= set(re.findall(r"^(\w+):", MAKEFILE, re.M))
    (check,) = re.findall(r"^check:.*\n\t\$\(RUN\) (.+)$", MAKEFILE, re.M)
    assert f"python {check}" in commands  # on systems without make


def test_jobs_end_and_their_actions_are_pinned():
    assert all(job["timeout-minutes"] <= 60 for job in WORKFLOW["jobs"].values())
    assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in STEPS if "uses" in step)


def test_the_oldest_python_and_transformers_are_tested():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"][0] == oldest
    (floor,) = re.findall(r"transformers==([\d.]+)", MAKEFILE)
    assert any(line.startswith(f"transformers>={floor.removesuffix('.0')},") for line in PROJECT["dependencies"])


def test_everything_that_make_installs_for_development_is_pinned():
    assert set(PROJECT["optional-dependencies"]["dev"]) <= PINNED.keys()


def test_the_changelog_has_the_version_of_the_package():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.M)[:2] == ["Unreleased", PROJECT["version"]]


def test_the_slow_tests_exist():
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")}
    for entry in SLOW:
        file, _, name = entry.partition("::") if ".py" in entry else ("conftest.py", "", entry)
        assert f"def {name}" in files.get(file, ""), entry
