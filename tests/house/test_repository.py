"""What the repository promises beside its code: configs parse, the map is whole."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from house.sources import PACKAGE, ROOT, fenced, modules, readme, texts
from pixsigma import __version__
from pixsigma.training.chain import is_chain, read_chain
from pixsigma.training.recipe import read_recipe
from pixsigma.weights.config_files import autoencoder_config, t5_config, transformer_config


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.toml")), ids=lambda p: p.name)
def test_shipped_recipes_parse(path: Path) -> None:
    assert (read_chain(path) if is_chain(path) else read_recipe(path)) is not None


def test_the_configs_of_mini_parse() -> None:
    readers = {
        "transformer": transformer_config,
        "text_encoder": t5_config,
        "vae": autoencoder_config,
    }
    for part, read in readers.items():
        assert read(json.loads((PACKAGE / "mini" / part / "config.json").read_text("utf-8")))
    index = json.loads((PACKAGE / "mini" / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "PixArtSigmaPipeline"


def test_every_toml_and_json_file_parses() -> None:
    for path in [*ROOT.glob("*.toml"), *ROOT.glob("recipes/**/*.toml")]:
        tomllib.loads(path.read_text("utf-8"))
    for path in PACKAGE.rglob("*.json"):
        json.loads(path.read_text("utf-8"))


def test_the_model_inside_stays_small() -> None:
    size = sum(path.stat().st_size for path in (PACKAGE / "mini").rglob("*") if path.is_file())
    assert size <= 48 * 1024**2


def test_the_map_in_the_readme_names_every_module() -> None:
    text = readme()
    names = {name.rpartition(".")[2] for name in modules() if name != "pixsigma"}
    packages = {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {"pixsigma"}
    missing = [f"{name}.py" for name in names - packages if f"{name}.py" not in text]
    missing += [f"{name}/" for name in packages if f"{name}/" not in text]
    assert not missing, f"the map does not name {', '.join(sorted(missing))}"


def test_the_map_in_the_readme_names_nothing_that_is_gone() -> None:
    (drawn,) = [block for block in fenced(readme(), "") if "src/pixsigma/" in block]
    there = {path.name for path in ROOT.rglob("*.py")} | {path.name for path in ROOT.glob("docs/*")}
    assert set(re.findall(r"[\w-]+\.(?:py|md)", drawn)) <= there


def test_pins_are_exact_and_within_the_ranges() -> None:
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in map(Requirement, wanted):
        if requirement.name != "pixsigma":
            version = pins[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version), requirement


def test_the_changelog_knows_this_version() -> None:
    assert __version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_nothing_private_is_said() -> None:
    # put together from halves, or this file would find itself
    private = re.compile("|".join(["/" + "work/", "/" + "root/", "/" + "home/", "/" + "opt/pypi"]))
    told = [str(path) for path, text in texts().items() if private.search(text)]
    assert told == []
