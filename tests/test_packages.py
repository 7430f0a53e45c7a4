"""What an installation brings: which files, which requirements, and that it works away from the checkout."""

import ast
import email
import functools
import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import macer_tf

REPOSITORY = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {"macer_tf": ".", "macer_tf_pipeline": "packaging/pipeline"}
CONTENTS = {"macer_tf": {"macer_tf"}, "macer_tf_pipeline": {"pipeline", "serving"}}
PINNED = {
    Requirement(line).name.replace("_", "-"): Requirement(line)
    for line in (REPOSITORY / "requirements.txt").read_text().splitlines()
    if line and not line.startswith("#")
}

COMMANDS = {
    "macer-run": "pipeline.run",
    "macer-certify": "pipeline.certify",
    "macer-runs": "pipeline.runs",
    "macer-compare": "pipeline.compare",
    "macer-publish": "serving.publish",
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Distribution -> its wheel, built from a copy of the tree that holds what a build left behind, too."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("macer_tf", "serving", "pipeline", "packaging"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree)
    (tree / "macer_tf" / "__pycache__").mkdir(exist_ok=True)
    (tree / "macer_tf" / "__pycache__" / "stale.pyc").touch()
    (tree / "serving" / "__pycache__").mkdir(exist_ok=True)
    (tree / "serving" / "__pycache__" / "stale.pyc").touch()
    built = tmp_path_factory.mktemp("wheels")
    for source in DISTRIBUTIONS.values():
        pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, tree / source)
    return {name: next(built.glob(f"{name}-*.whl")) for name in DISTRIBUTIONS}


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, arguments)], check=True, timeout=300)


def about(wheel):
    """A wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def required(wheel, extra=""):
    """Name -> `Requirement`, of a wheel with an extra and of the wheel alone without one."""
    listed = [Requirement(text) for text in about(wheel).get_all("Requires-Dist")]
    return {
        one.name: one
        for one in listed
        if (one.marker.evaluate({"extra": extra}) if one.marker else not extra) and one.name != "macer-tf"
    }


packages_distributions = functools.cache(metadata.packages_distributions)  # it reads what every wheel lists


def imported(package):
    """The distributions whose modules the package's files import, wherever in a file."""
    names = set()
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
    # Namespace packages have the distributions of all their parts.
    names = {"protobuf" if name.startswith("google.protobuf") else name.split(".")[0] for name in names}
    names -= {*sys.stdlib_module_names, "macer_tf", "serving", "pipeline"}
    found = packages_distributions()
    return {name if name == "protobuf" else found.get(name, [name])[0].lower().replace("_", "-") for name in names}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_wheel_holds_every_file_of_its_packages_and_nothing_else(wheels, distribution):
    with zipfile.ZipFile(wheels[distribution]) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(REPOSITORY))
        for package in CONTENTS[distribution]
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files
    assert ("serving/conf/docker-compose.yml" in packed) == ("serving" in CONTENTS[distribution])


def test_the_library_asks_for_what_it_imports_and_no_more(wheels):
    beside = {"tf-keras"}  # TensorFlow Probability's, which does not ask for it itself
    assert required(wheels["macer_tf"]).keys() == imported("macer_tf") - {"torch"} | beside
    assert required(wheels["macer_tf"], "torch").keys() == {"torch"}


def test_the_extras_ask_for_what_pipeline_and_serving_import_beside(wheels):
    of_library = required(wheels["macer_tf"]).keys()
    of_serving = required(wheels["macer_tf"], "serving").keys()
    assert of_serving == imported("serving") - of_library
    # TFDS's, which does not ask for it itself; and what shows the curves.
    beside = {"importlib-resources", "tensorboard"}
    assert required(wheels["macer_tf"], "pipeline").keys() - beside == imported("pipeline") - of_library - of_serving


def test_ranges_are_no_pins_and_hold_what_is_tested(wheels):
    for extra in ("", "serving", "pipeline", "torch"):
        for name, requirement in required(wheels["macer_tf"], extra).items():
            assert "==" not in str(requirement.specifier), name
            if name in PINNED:
                (pin,) = PINNED[name].specifier
                assert requirement.specifier.contains(pin.version), name


def test_both_distributions_are_of_one_version_and_one_python(wheels):
    told = {name: about(wheel) for name, wheel in wheels.items()}
    assert {one["Version"] for one in told.values()} == {macer_tf.__version__}
    assert {one["Requires-Python"] for one in told.values()} == {"<3.14,>=3.11"}
    assert about(wheels["macer_tf_pipeline"]).get_all("Requires-Dist") == [
        f"macer-tf[pipeline]=={macer_tf.__version__}"
    ]
    assert re.search(rf"^version: {macer_tf.__version__}$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## {macer_tf.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_make_clean_leaves_runs_and_git_ignores_what_is_built():
    (recipe,) = re.findall(r"^clean:\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert "runs" not in recipe
    assert {"build/", "dist/", "site/", "*.egg-info/"} <= set((REPOSITORY / ".gitignore").read_text().split())


@pytest.mark.parametrize("module", COMMANDS.values())
def test_every_command_tells_its_version(module, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"macer_tf {macer_tf.__version__}\n")


@pytest.fixture(scope="module")
def environment(wheels, tmp_path_factory):
    """A fresh environment with the requirements of this one -> a function that runs a line of bash in it, elsewhere."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=120)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "requirements.pth").write_text(sysconfig.get_path("purelib"))

    def run(line):
        path = f"{folder / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", "-c", line], cwd=folder, env={"PATH": path}, capture_output=True, text=True, timeout=300
        )

    def install(distribution):
        pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheels[distribution])

    run.install = install
    return run


LIBRARY = """
import importlib.util, numpy as np, keras, macer_tf
assert "site-packages" in macer_tf.__file__, macer_tf.__file__
assert not any(map(importlib.util.find_spec, ("pipeline", "serving")))
x = np.random.default_rng(0).random((32, 8, 8, 1)).round(2)
model = macer_tf.MACERModel(macer_tf.networks.small_cnn(), sigma=0.25, num_samples=2)
model.compile(macer_tf.SGD(0.01))
model.fit(x, np.arange(32) % 10, verbose=0)
pixels = np.rint(x[:2] * 255) / 255
print(macer_tf.SmoothedClassifier(model).certify(pixels, n0=10, n=20, alpha=0.1))
"""


@pytest.mark.slow
def test_an_installation_trains_and_certifies_and_a_second_one_brings_the_commands(environment):
    environment.install("macer_tf")
    trained = environment(f"python -W ignore -c '{LIBRARY}'")
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.startswith("Certificates(2 images, sigma=0.25")
    assert environment("macer-run --help").returncode == 127

    environment.install("macer_tf_pipeline")
    for command, module in COMMANDS.items():
        told = environment(f"{command} --version && {command} --help")
        assert told.returncode == 0, told.stderr
        assert told.stdout.startswith(f"macer_tf {macer_tf.__version__}\nusage: python -m {module}")
    refused = environment("macer-certify --xyzzy")
    assert (refused.returncode, refused.stderr) == (2, "error: Unknown argument --xyzzy. See --help.\n")
    found = environment("python -c 'from pathlib import Path; import serving; print(Path(serving.__file__).parent)'")
    assert (Path(found.stdout.strip()) / "conf" / "docker-compose.yml").is_file()


def test_the_pins_are_of_what_is_asked_for():
    """`make` installs from requirements.lock, which is made of requirements.txt: the same names, of both wheels."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {Requirement(text).name for text in (*project["dependencies"], *extras["pipeline"], *extras["serving"])}
    assert PINNED.keys() <= asked | {"statsmodels"}  # what the tests hold bounds against
