"""The rules of the source tree: who imports whom, how long a file is, what may not be written.

A rule is a function from source text to its offences, so that it is also tested on text that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "squidiff"
FILES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))
MAX_LINES = 500

PARTS = {
    "config": (),
    "files": ("config",),
    "diffusion": ("config",),
    "model": ("config",),
    "data": ("config", "files"),
    "response": ("config",),
    "train": ("config", "diffusion", "files", "model"),
    "evaluate": ("config", "data.conditions", "data.manifest", "data.table", "data.unit", "response"),
    "estimator": ("config", "data", "diffusion", "files", "model", "response", "train"),
    "tasks": ("config", "data", "estimator", "evaluate", "model.latent", "response"),
    "report": ("config", "evaluate", "files"),
    "tune": ("config", "data", "estimator", "evaluate"),
}
"""Which modules each unit may import besides its own: a name allows what is below it too."""

ALLOWED = {
    **PARTS,
    "legacy": ("config", "data", "diffusion", "estimator", "files", "model", "report.plots", "train"),
    "workflows": tuple(PARTS),
    "pl": ("workflows",),
    "cli": (*PARTS, "legacy", "workflows", "__init__"),
    "__main__": ("cli",),
    "__init__": (*PARTS, "legacy", "workflows", "pl", "cli"),
}

TORCH_DRAWS = {
    f"torch.{name}" for name in ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
} | {f"torch.{name}_like" for name in ("rand", "randint", "randn")}
"""They draw from the process's shared state unless they are given a generator."""
TORCH_SETTERS = ("manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state")

WORKS_WITHOUT_TORCH = {
    "squidiff",
    "squidiff.config",
    "squidiff.data.check",
    "squidiff.data.table",
    "squidiff.evaluate.metrics",
    "squidiff.evaluate.scoring",
    "squidiff.response.stack",
    *(f"squidiff.{f[:-3].replace('/', '.')}" for f in FILES if f.startswith(("evaluate/", "response/"))),
}


def unit_of(file: str) -> str:
    """`data/table.py` -> `data`, `config.py` -> `config`."""
    return PurePosixPath(file).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, wherever it stands; a name imported from a module is added to it."""
    package = ("squidiff", *PurePosixPath(file).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            for alias in node.names:
                yield node.lineno, ".".join((*base, *filter(None, [node.module]), alias.name))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            texts = (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
            yield from ((node.lineno, text) for text in texts)


def import_offences(source: str, file: str) -> list[str]:
    """Imports of ours that the table does not allow."""
    unit = unit_of(file)
    if unit not in ALLOWED:
        return [f"{file}: the unit {unit} is not in the table"]
    offences = []
    for line, module in imported_modules(ast.parse(source), file):
        top, *rest = module.split(".")
        # The version is a constant of the distribution, not an arrow to a unit.
        if top != "squidiff" or rest == ["__version__"]:
            continue
        # `import squidiff` and `from squidiff import Squidiff` reach every unit through the lazy names.
        target = ".".join(rest) if rest and rest[0] in ALLOWED else "__init__"
        if not any(target == name or target.startswith(f"{name}.") for name in (unit, *ALLOWED[unit])):
            offences.append(f"{file}:{line}: {unit} imports {module}")
    return offences


def length_offences(source: str, file: str) -> list[str]:
    """A file that is too long."""
    n_lines = len(source.splitlines())
    return [f"{file}: {n_lines} lines, more than {MAX_LINES}"] if n_lines > MAX_LINES else []


def device_offences(source: str, file: str) -> list[str]:
    """Texts that name one maker's device: devices are found, not named."""
    return [
        f"{file}:{node.lineno}: {node.value!r}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")
    ]


def import_names(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: `import numpy as np` gives {"np": "numpy"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """`np.random.seed` -> `numpy.random.seed`; empty for what is not a chain of attributes of an imported name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (owner := full_name(node.value, names)):
        return f"{owner}.{node.attr}"
    return ""


def is_global_state(name: str) -> bool:
    """Whether a full name draws from, or sets, random state that the whole process shares."""
    module, _, last = name.rpartition(".")
    if name == "numpy.random" or module == "numpy.random":
        return last not in ("default_rng", "Generator", "SeedSequence", "PCG64")
    if name == "random" or module == "random":
        return last != "Random"
    return module.startswith("torch") and last in TORCH_SETTERS


def randomness_offences(source: str, file: str) -> list[str]:
    """Uses of global random state: randomness is passed in."""
    tree = ast.parse(source)
    nodes, names = list(ast.walk(tree)), import_names(tree)
    # `np.random` alone is an offence, as a part of `np.random.default_rng` it is none.
    parts = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    offences = [
        (node.lineno, name)
        for node in nodes
        if isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in parts
        if is_global_state(name := full_name(node, names))
    ]
    offences += [
        (node.lineno, f"{name} without a generator")
        for node in nodes
        if isinstance(node, ast.Call) and (name := full_name(node.func, names)) in TORCH_DRAWS
        if "generator" not in {keyword.arg for keyword in node.keywords}
    ]
    return [f"{file}:{line}: {what}" for line, what in offences]


def print_offences(source: str, file: str) -> list[str]:
    """Calls of print outside the two units that talk to people."""
    if unit_of(file) in ("cli", "report"):
        return []
    return [
        f"{file}:{node.lineno}: print"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


RULES = (import_offences, length_offences, device_offences, randomness_offences, print_offences)


def test_there_is_source_to_read() -> None:
    assert "config.py" in FILES


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("file", FILES)
def test_file_keeps_rule(rule: Callable[[str, str], list[str]], file: str) -> None:
    assert rule((SOURCE / file).read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("config.py", "from squidiff.data.table import CellTable"),
        ("diffusion/loss.py", "from squidiff.model import network"),
        ("model/network.py", "import squidiff.diffusion.loss"),
        ("model/network.py", "from squidiff import diffusion"),
        ("data/table.py", "import squidiff"),
        ("data/table.py", "from squidiff import Squidiff"),
        ("data/table.py", "from squidiff import *"),
        ("data/table.py", "from ..estimator import Squidiff"),
        ("data/table.py", "from .. import estimator"),
        ("data/table.py", "def f():\n    from squidiff.estimator import Squidiff"),
        ("data/table.py", "if TYPE_CHECKING:\n    from squidiff.estimator import Squidiff"),
        ("data/table.py", "importlib.import_module('squidiff.estimator')"),
        ("evaluate/scoring.py", "from squidiff.data.dataset import Pairs"),
        ("evaluate/scoring.py", "from squidiff.data import *"),
        ("evaluate/scoring.py", "from squidiff.data.tables import CellTable"),
        ("tasks/drug.py", "from squidiff.model.network import Network"),
        ("legacy.py", "from squidiff.report import html"),
        ("workflows/demo.py", "from squidiff.cli import main"),
        ("workflows/demo.py", "from squidiff.legacy import convert"),
        ("cli/run.py", "from squidiff.__main__ import main"),
        ("utils.py", "import math"),
    ],
)
def test_import_rule_finds(file: str, source: str) -> None:
    assert len(import_offences(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "data/table.py",
            "import torch\nfrom squidiff.config import Schema\nfrom .conditions import Part\nfrom . import check",
        ),
        ("data/__init__.py", "from .table import CellTable\nfrom ..config import Schema"),
        ("evaluate/scoring.py", "from squidiff.data.table import CellTable\nfrom squidiff.data import manifest"),
        ("tasks/drug.py", "from squidiff.model.latent import shift_latent"),
        ("legacy.py", "from squidiff.report.plots import training_loss"),
        ("estimator.py", "from squidiff import __version__, config"),
        ("cli/run.py", "import squidiff\nfrom squidiff.workflows import demo"),
        ("__init__.py", "def f():\n    from squidiff.estimator import Squidiff"),
    ],
)
def test_import_rule_allows(file: str, source: str) -> None:
    assert import_offences(source, file) == []


def test_only_entry_points_import_the_command_line() -> None:
    assert [unit for unit, allowed in ALLOWED.items() if "cli" in allowed] == ["__main__", "__init__"]


def test_length_rule_finds_line_501() -> None:
    assert length_offences("x = 1\n" * 500, "config.py") == []
    assert length_offences("x = 1\n" * 501, "config.py") == ["config.py: 501 lines, more than 500"]


@pytest.mark.parametrize("source", ["x.to('cuda')", "x.to('cuda:0')", "x.to(f'cuda:{i}')", "case('cuda')"])
def test_device_rule_finds(source: str) -> None:
    assert len(device_offences(source, "train/loop.py")) == 1


def test_device_rule_allows_a_word_that_holds_it() -> None:
    assert device_offences("'a barracuda'; torch.accelerator.current_accelerator()", "train/loop.py") == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.normal(size=3)",
        "import numpy as np\nrng = np.random",
        "import numpy\nnumpy.random.RandomState(0)",
        "import numpy.random as npr\nnpr.shuffle(x)",
        "from numpy import random\nrandom.rand()",
        "from numpy.random import permutation\npermutation(3)",
        "import random\nrandom.shuffle(x)",
        "from random import choice\nchoice(x)",
        "import torch\ntorch.manual_seed(0)",
        "import torch as t\nt.seed()",
        "import torch\ntorch.random.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed_all(0)",
        "from torch import manual_seed\nmanual_seed(0)",
        "import torch\ntorch.randn(3)",
        "import torch\ntorch.randn_like(x)",
    ],
)
def test_randomness_rule_finds(source: str) -> None:
    assert len(randomness_offences(source, "train/loop.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import numpy as np\ndef f(rng: np.random.Generator): rng.normal()",
        "import numpy as np\nnp.random.default_rng(np.random.SeedSequence(0)); np.random.Generator(np.random.PCG64(0))",
        "import torch\ntorch.Generator().manual_seed(0)\ngenerator.manual_seed(0)",
        "import torch\ntorch.randn(3, generator=generator)\ngenerator.seed()",
        "import random\nrandom.Random(0).shuffle(x)",
        "rng.random(); self.random.choice(x); config.seed",
    ],
)
def test_randomness_rule_allows(source: str) -> None:
    assert randomness_offences(source, "train/loop.py") == []


def test_print_rule_knows_who_may_print() -> None:
    source = "def f():\n    print(1)"
    assert print_offences(source, "train/loop.py") == ["train/loop.py:2: print"]
    assert print_offences(source, "cli/run.py") == print_offences(source, "report/note.py") == []
    assert print_offences("console.print(1); pprint(1)", "train/loop.py") == []


def run_python(code: str, folder: Path) -> str:
    """What a fresh interpreter prints as its last line; folder keeps the source tree out of its path."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


TORCH_LOADED = "print('torch loaded' if 'torch' in sys.modules else 'no torch')"


@pytest.mark.slow
def test_torch_loaded_is_seen(tmp_path: Path) -> None:
    assert run_python(f"import sys, torch; {TORCH_LOADED}", tmp_path) == "torch loaded"


@pytest.mark.slow
def test_checking_and_scoring_need_no_torch(tmp_path: Path) -> None:
    assert run_python(f"import sys, {', '.join(sorted(WORKS_WITHOUT_TORCH))}; {TORCH_LOADED}", tmp_path) == "no torch"


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from squidiff.cli import main
sys.argv = ["squidiff", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
{TORCH_LOADED}
"""
    assert run_python(code, tmp_path) == "no torch"


def repository_files() -> list[Path]:
    """What git tracks or would track; all files of the project's folders where there is no git, as in an archive."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    folders = [ROOT / name for name in (".ci", "benchmarks", "docs", "src", "tests")]
    files = (*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*")))
    return [path for path in files if path.is_file() and "__pycache__" not in path.parts]


def machine_paths(content: bytes) -> list[str]:
    """Paths of the machines that this was written on; joined here, so that this file does not hold them."""
    paths = [
        "/".join(("", *parts)) for parts in (("work", ""), ("tmp", "bash_jobs"), ("opt", "wheels"), ("opt", "pypi"))
    ]
    return [path for path in paths if path.encode() in content]


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    found = {str(path.relative_to(ROOT)): machine_paths(path.read_bytes()) for path in repository_files()}
    assert "pyproject.toml" in found
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_machine_paths_are_found() -> None:
    assert machine_paths("/".join(["see ", "work", "data"]).encode()) == ["/".join(["", "work", ""])]
    assert machine_paths(b"the network/ folder") == []
