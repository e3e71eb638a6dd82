"""What a fresh clone promises: the same dependencies everywhere, the README's commands, a licence, one version."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.import_rules import imports_of, read_tree

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

RUN_COMMAND = "pip install -e . && python app.py"
TEST_COMMAND = 'pip install -e ".[test]" && pytest'
# Import name of a distribution, where it is another.
IMPORT_NAMES = {"nvidia-ml-py": "pynvml"}
# There on the one platform that it is of use on, and looked for nowhere else.
OF_THE_PLATFORM = {"spaces"}


def requirement_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_requirements_txt_is_equal_to_the_dependencies_of_pyproject() -> None:
    lines = requirement_lines((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert lines == PROJECT["dependencies"]


def test_every_library_that_the_code_imports_is_a_declared_dependency() -> None:
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    declared_imports = {IMPORT_NAMES.get(name, name).replace("-", "_").lower() for name in declared}
    own = {"playground", "kernels", "app"}
    # These come with a declared dependency that is built on them and names them in its own API.
    carried = {
        "sqlalchemy": "sqlmodel",
        "fastapi": "gradio",
        "starlette": "gradio",
        "uvicorn": "gradio",
        "click": "typer",
    }
    tree = read_tree(ROOT)
    missing = {
        f"{module}: {library}"
        for module, source in tree.items()
        for library in {name.split(".")[0] for name, _ in imports_of(module, source, set(tree))}
        if library not in sys.stdlib_module_names
        and library not in own | OF_THE_PLATFORM
        and library.lower() not in declared_imports
        and carried.get(library) not in declared
    }
    assert missing == set()


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_the_installed_version_of_a_dependency_is_one_that_is_declared(line: str) -> None:
    requirement = Requirement(line)
    if requirement.marker and not requirement.marker.evaluate():
        pytest.skip(f"{requirement.name} is not for this platform: {requirement.marker}")
    installed = metadata.version(requirement.name)
    assert requirement.specifier.contains(installed, prereleases=True), f"{requirement.name} {installed}"


def test_this_python_is_one_that_is_declared() -> None:
    from packaging.specifiers import SpecifierSet

    assert SpecifierSet(PROJECT["requires-python"]).contains(".".join(map(str, sys.version_info[:3])))
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


@pytest.mark.parametrize("command", [RUN_COMMAND, TEST_COMMAND])
def test_the_readme_gives_each_command_as_one_line(command: str) -> None:
    assert README.splitlines().count(command) == 1


def test_the_check_script_runs_the_readme_command_between_its_linters() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert f"grep -m1 -xF '{TEST_COMMAND}' README.md" in script
    order = [
        script.index(step)
        for step in ('eval "$install"', "\nruff check", "\nruff format --check", "\nmypy", 'eval "$tests"')
    ]
    assert order == sorted(order)
    assert script.rstrip().endswith('eval "$tests"')
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=False).returncode == 0


def test_the_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000


def test_every_picture_and_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_lists_every_environment_variable_that_the_code_reads() -> None:
    pattern = re.compile(r"""(?:environ(?:\.get\(|\[)|getenv\(|envvar=)\s*["']([A-Z][A-Z0-9_]+)["'](?!\]\s*=[^=])""")
    used = {name for source in read_tree(ROOT).values() for name in pattern.findall(source)}
    assert {name for name in used if f"`{name}`" not in README} == set()
