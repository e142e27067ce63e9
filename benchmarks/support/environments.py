"""A virtual environment for packages that the project itself does without, made from a file of pinned requirements.

It holds these packages only. A process that is to use them calls ``use``: they come before the project's own packages
there, which serve everything else that they need.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def make_environment(folder: Path, requirements: Path) -> str | None:
    """Make the environment unless it stands there already; returns why that is not possible, or None."""
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
    """Let this process import the environment's packages."""
    variables = {"base": str(folder.resolve()), "platbase": str(folder.resolve())}
    sys.path.insert(0, sysconfig.get_path("purelib", "venv", variables))
