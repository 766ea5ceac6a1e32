"""The front door to every check. `nox` runs the default sessions; `nox -l` lists them all.

Every session has an environment of its own; a session for a backend fails if the backend is
missing. Arguments after `--` go to pytest (or to zoo in the session `zoo`).
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "bare", "doctor", "torch", "keras", "cross", "notebooks"]
nox.options.error_on_missing_interpreters = True
# With the model of tests/export/test_selftest.py it has every fault of torch, Keras and ONNX files; on Keras'
# other engines those of a softmax and of padding are left to the session `selftest`, which takes all five.
SCORED = ("lenet-dropout",)
# Most tests wait for one process at a time, a framework that starts: so several of them run at once.
SPREAD = ("-n", "auto", "--dist", "worksteal")
# Tests run beside each other: NumPy's threads wait by spinning, which took up to a third of their CPU time.
ALONE = {"OPENBLAS_NUM_THREADS": "1"}
# Set in many images, it has every process that loads a framework compile thousands of modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
NEITHER = (
    # tests that are sessions of their own
    "not cross and not full_mnist and not notebooks and not classics and not engines and not judges"
)


def _test(session: nox.Session, *arguments: str, backends: str, specs: int | None = None) -> None:
    """Run pytest with exactly these backends required, and a Keras home of the session's own.

    specs: how many random specs the property tests try; with a number they must run.
    """
    env = {"ZOO_TEST_BACKENDS": backends, "KERAS_HOME": session.create_tmp(), **ALONE}
    if specs is not None:
        env["ZOO_SPECS"] = str(specs)
    if "ZOO_DATA" in os.environ:  # relative to where nox was called
        env["ZOO_DATA"] = os.path.join(session.invoked_from, os.environ["ZOO_DATA"])
    session.run("pytest", *arguments, *session.posargs, env=env)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting (ruff), imports that break the architecture (ruff, import-linter)."""
    session.install("ruff", "import-linter")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo", silent=False)


@nox.session
def types(session: nox.Session) -> None:
    """Static types (mypy, strict). The frameworks are not needed."""
    session.install("-e", ".", "mypy", "pytest", "types-requests", "types-tabulate")
    session.run("mypy", *session.posargs)


@nox.session
def bare(session: nox.Session) -> None:
    """Everything that works with no framework installed, and what is said about the others."""
    session.install("-e", ".[tensorboard]", "jsonschema", "pytest", "pytest-xdist", "ruff", "scikit-image")
    _test(session, *SPREAD, "-m", NEITHER, backends="")


@nox.session
def doctor(session: nox.Session) -> None:
    """The shipped files test themselves where there is nothing but click, NumPy and onnxruntime."""
    session.install("--no-deps", ".")
    session.install("click", "numpy", "onnxruntime")
    files = sorted(str(path) for path in Path("zoo/pretrained").glob("*.onnx"))
    session.run("zoo", "doctor", *files, env={"ZOO_DATA": ""})


@nox.session
def torch(session: nox.Session) -> None:
    """PyTorch alone: the tests that use a framework; `bare` has run the others."""
    session.install("-e", ".[torch]", "pytest", "pytest-xdist", "scipy")
    _test(session, *SPREAD, "-m", NEITHER, "--only-frameworks", backends="torch")


@nox.session
def keras(session: nox.Session) -> None:
    """Keras on TensorFlow alone: the tests that use a framework; `bare` has run the others."""
    session.install("-e", ".[keras]", "pytest", "pytest-xdist", "scipy")
    _test(session, *SPREAD, "-m", NEITHER, "--only-frameworks", backends="keras")


@nox.session
def cross(session: nox.Session) -> None:
    """Both frameworks, each in its own process, against each other; other engines; the mutation score."""
    session.install("-e", ".[all]", "hypothesis", "jax", "pytest", "pytest-xdist", "scipy")
    _test(session, *SPREAD, "-m", "cross", backends="torch,keras", specs=40)
    if not session.posargs:
        score = os.path.join(session.create_tmp(), "selftest.json")
        session.run("zoo", "selftest", *SCORED, "--honest", "6", "--report", score, env=ALONE)


@nox.session(default=False)
def selftest(session: nox.Session) -> None:
    """The mutation score with 1,000 honest cases of each of three generators, none to be accused: hours."""
    session.install("-e", ".[all]", "torchvision")  # from which some of the cases are imported
    session.run("zoo", "selftest", "--honest", "3000", *session.posargs)


@nox.session
def notebooks(session: nox.Session) -> None:
    """The notebooks of examples/, run from the first cell to the last."""
    session.install(
        "-e", ".[torch,tensorboard]", "ipykernel", "nbclient", "nbformat", "pytest", "pytest-xdist", "scipy"
    )
    _test(session, *SPREAD, "-m", "notebooks", backends="torch")


@nox.session(default=False)
def properties(session: nox.Session) -> None:
    """2,000 random specs through every backend and exporter, others each time: about a quarter of an hour."""
    session.install("-e", ".[all]", "hypothesis", "pytest", "scipy")
    _test(session, "-m", "cross", "tests/export/test_properties.py", backends="torch,keras", specs=2000)


@nox.session(default=False)
def judges(session: nox.Session) -> None:
    """What PyTorch computed, and torch's samples of its own operators, against both backends: two minutes."""
    constraints = nox.project.load_toml("pyproject.toml")["tool"]["uv"]["constraint-dependencies"]
    torch = [
        pinned for pinned in constraints if pinned.startswith("torch==")
    ]  # the samples are private there
    session.install("-e", ".[all]", "expecttest", "pytest", "pytest-xdist", *torch)
    _test(session, *SPREAD, "-m", "judges", "tests/export/test_judges.py", backends="torch,keras")


@nox.session(default=False)
def third_party(session: nox.Session) -> None:
    """The example of a backend, and Keras on JAX and torch, under the published tests: half an hour."""
    session.install("-e", ".[all]", "equinox", "jax", "pytest", "pytest-xdist", "scipy")
    session.install("--no-deps", "./examples/zoo-jax")
    _test(session, *SPREAD, "-m", "not engines", "tests/backends/test_engines.py", backends="torch,keras")
    _test(session, *SPREAD, "-m", "engines", "tests/backends/test_engines.py", backends="")
    with session.chdir("examples/zoo-jax"):
        _test(session, *SPREAD, "tests", backends="")


@nox.session(default=False)
def classics(session: nox.Session) -> None:
    """The classics at full size, both backends and ONNX, against torchvision and Keras: ten minutes, 8 GB."""
    session.install("-e", ".[all]", "pytest")
    _test(session, "-m", "classics", backends="torch,keras")


@nox.session(default=False)
def sweep(session: nox.Session) -> None:
    """Ended or failed at every place where files are touched (strace if there is one): about an hour."""
    session.install("-e", ".[all]", "pytest")
    session.env["ZOO_SWEEP"] = "all"
    _test(session, "-s", "tests/hostile/test_crash_sweep.py", backends="torch,keras")


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Mutated files of every format for five minutes each, others each time; half an hour on two cores."""
    session.install("-e", ".", "pytest", "pytest-xdist")
    session.env["ZOO_MUTATION_SECONDS"] = "300"
    _test(session, *SPREAD, "tests/hostile/test_hostile_files.py", backends="")


@nox.session(default=False)
def mnist(session: nox.Session) -> None:
    """The documented recipes in full on MNIST (ZOO_DATA), both backends: about ten minutes."""
    session.install("-e", ".[all]", "pytest", "scipy")
    _test(session, "-m", "full_mnist", backends="torch,keras")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """How fast the zoo starts and trains, how that grows, drawn digits (needs MNIST, ZOO_DATA): two hours."""
    session.install("-e", ".[all]", "scipy")
    env = {"ZOO_DATA": os.path.join(session.invoked_from, os.environ.get("ZOO_DATA", ""))}
    pairs = session.create_tmp()
    started, trained = (os.path.join(pairs, f"{name}.json") for name in ("start_up", "training"))
    if not session.posargs:
        session.run("python", "-m", "benchmarks.start_up", "--out", started)
    session.run("python", "-m", "benchmarks.training", "--out", trained, *session.posargs, env=env)
    if not session.posargs:
        session.run("python", "-m", "benchmarks.growth", "--out", os.path.join(pairs, "growth"), env=env)
        session.run("python", "-m", "benchmarks.drawn", "--hands", "4000")


@nox.session(default=False)
def pretrained(session: nox.Session) -> None:
    """Train what comes with weights on MNIST (ZOO_DATA) and write zoo/pretrained anew: half an hour."""
    session.install("-e", ".[torch]")
    runs = session.create_tmp()
    for names in ((), ("resnet-mini", "cnn-tiny")):  # without names, the documented ones
        session.run("zoo", "build", *names, "--backend", "torch", "--data", "mnist", "--out", runs)
    session.run("python", "-m", "export.runs.shipping", runs)


@nox.session(default=False)
def zoo(session: nox.Session) -> None:
    """The command line in an environment with everything: nox -s zoo -- build --data digits."""
    session.install("-e", ".[all]")
    session.run("zoo", *session.posargs)
