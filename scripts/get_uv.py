"""Puts uv into a folder: python3 scripts/get_uv.py FOLDER.

Runs on any Python from 3.8 on, before the project has an environment of its own. It asks pip, which knows about the
machine's proxies and mirrors; where the system's Python comes without pip, as on Debian without python3-venv, it takes uv's
wheel from PyPI itself. Exits with 1 and a sentence when neither works.
"""

import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

VERSION = "0.13.9"

# SHA-256 of uv's wheels on PyPI, by operating system and machine. The one for musl runs on any Linux of its machine.
WHEELS = {
    ("Linux", "x86_64"): "2c45530751517d6c3bbc69a19473f6effe47cce047bede01ffd8af7ea7b36b25",
    ("Linux", "aarch64"): "5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe",
    ("Darwin", "x86_64"): "c16ed11e013557536b3e60065f1b912f6407bd6518e041b961e23ef9e6b4fbf5",
    ("Darwin", "arm64"): "66c512266d633bef48384a1f53003f41f2a8e7b36fe6e7fbfd3e0fd52d96fa63",
}


def install_by_pip(folder: Path) -> bool:
    """Make a virtual environment in `folder` and install uv there; False where this Python or pip cannot."""
    made = subprocess.run([sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False)
    if made.returncode != 0:
        return False
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run([*pip, f"uv=={VERSION}"], check=False).returncode == 0


def install_by_download(folder: Path) -> None:
    """Take uv's wheel from PyPI and put the program into `folder`/bin."""
    machine = (platform.system(), platform.machine())
    if machine not in WHEELS:
        sys.exit(f"uv {VERSION} is not known for {' '.join(machine)}: install python3-venv and pip, and try again.")
    sha256 = WHEELS[machine]
    try:
        with urllib.request.urlopen("https://pypi.org/simple/uv/", timeout=60) as answer:
            page = answer.read().decode()
        address = re.search(rf'href="(https://[^"#]+\.whl)#sha256={sha256}"', page)
        if address is None:
            sys.exit(f"PyPI does not list the wheel of uv {VERSION} for {' '.join(machine)}.")
        with urllib.request.urlopen(address[1], timeout=300) as answer:  # noqa: S310 - the pattern above admits https alone.
            wheel = answer.read()
    except urllib.error.URLError as error:
        sys.exit(f"uv could not be fetched from PyPI: {error}")
    if hashlib.sha256(wheel).hexdigest() != sha256:
        sys.exit(f"The wheel of uv {VERSION} from PyPI is not the one that was expected.")
    program = folder / "bin" / "uv"
    program.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        program.write_bytes(archive.read(f"uv-{VERSION}.data/scripts/uv"))
    program.chmod(0o755)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python3 scripts/get_uv.py FOLDER")
    folder = Path(sys.argv[1])
    # What an interrupted run left behind would stand in the way.
    shutil.rmtree(folder, ignore_errors=True)
    if not install_by_pip(folder):
        shutil.rmtree(folder, ignore_errors=True)
        install_by_download(folder)


if __name__ == "__main__":
    main()
