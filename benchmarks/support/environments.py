"""Virtual environments for third-party packages that the project does not depend on, from pinned requirements.

An environment holds only these packages. A process calls ``use`` to put them before the project's own packages on its
path; all other dependencies come from the latter.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def make_environment(folder: Path, requirements: Path) -> str | None:
    """Create the environment unless it is up to date; returns None, or the reason for a failure."""
    text, installed = requirements.read_text(), folder / "installed.txt"
    if installed.exists() and installed.read_text() == text:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--requirement", str(requirements)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with exit status {done.returncode}"
    installed.write_text(text)
    return None


def use(folder: Path) -> None:
    """Make the environment's packages importable in this process."""
    variables = {"base": str(folder.resolve()), "platbase": str(folder.resolve())}
    sys.path.insert(0, sysconfig.get_path("purelib", "venv", variables))
