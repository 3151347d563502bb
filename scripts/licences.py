"""Writes docs/licences.md, or with --check fails if it is out of date: .venv/bin/python scripts/licences.py [--check].

What is installed tells its licence itself. What is packed within it, and what is no package, is told here; a library in a wheel
of which nothing is known here is an error, so that none comes along unnoticed.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "licences.md"

#: What is deployed: the requirements that `make lock` writes, and what they become.
PACKED = {
    "layers/dependencies/requirements.txt": "layer `dependencies`, under every function",
    "layers/documents/requirements.txt": "layer `documents`, under the certificate functions",
    "layers/fonts/requirements.txt": "layer `fonts`, under the certificate functions",
    "functions/migrate/requirements.txt": "function `Migrate`",
}

#: Shared libraries in the wheels for Linux, by the beginning of their names.
LIBRARIES = {
    "libcom_err": "MIT",
    "libcrypt": "LGPL-2.1-or-later",
    "libcrypto": "Apache-2.0",
    "libgssapi_krb5": "MIT",
    "libk5crypto": "MIT",
    "libkeyutils": "LGPL-2.1-or-later",
    "libkrb5": "MIT",
    "libkrb5support": "MIT",
    "liblber": "OLDAP-2.8",
    "libldap": "OLDAP-2.8",
    "libpq": "PostgreSQL",
    "libsasl2": "BSD-Attribution-HPND-disclaimer",
    "libssl": "Apache-2.0",
}

REST = """
## Within the packages

| in | what | licence |
| --- | --- | --- |
| `cryptography` | OpenSSL, linked in | Apache-2.0 |
| `lxml` | libxml2, libxslt; zlib; libiconv, linked in | MIT; Zlib; LGPL-2.1-or-later |
| `cffi` | libffi, linked in | MIT |
| `typst` | the typesetter and the Rust crates it is built from; its own fonts Libertinus, New Computer Modern, DejaVu | \
Apache-2.0, MIT and alike; OFL-1.1, GUST, Bitstream Vera |
| `pydantic-core` | the Rust crates it is built from | MIT, Apache-2.0 |
| `aws-lambda-powertools` | Swagger UI, shown by the local service alone | Apache-2.0 |
| `certifi` | Mozilla's list of authorities | MPL-2.0 |
| `fontpkg-*`, `justmytype-*` | the Noto fonts, unchanged, with their licence in the package | OFL-1.1 |

## What is no package

| what | where | licence |
| --- | --- | --- |
| JSON-LD context of the W3C | `shared/certificate/contexts/credentials-v2.json` | W3C Software and Document License |
| JSON-LD context of 1EdTech | `shared/certificate/contexts/ob-v3p0-3.0.3.json` | Apache-2.0 |
| two fonts of last resort | `shared/certificate/fonts/` | MIT, made by `scripts/make_fallback_font.py` |
| Amazon's root certificates for RDS | `functions/migrate/rds-roots.pem` | none stated; published by AWS for this use |
| OULAD, module AAA 2013J, for the demo; not deployed | `local/data/oulad-aaa-2013j/` | CC-BY-4.0 |
| data of tests; not deployed | `tests/data/`, each folder with its licence | see there |

Nothing of this is changed, and no package is under the GPL or AGPL alone. The ones under the LGPL (`psycopg`, `frozendict`,
libraries in the wheels) are used as they are published, and lie in layers where another version can take their place.
"""


def packages(requirements: Path) -> list[tuple[str, str, str]]:
    """Name, version and licence of each package that the requirements install on this kind of machine."""
    found: list[tuple[str, str, str]] = []
    for line in re.findall(r"^[a-z0-9].*==[^\\\n]*", requirements.read_text(), re.MULTILINE):
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = str(requirement.specifier).removeprefix("==")
        found.append((requirement.name, version, licence(metadata.metadata(requirement.name))))
    return found


def licence(about: "metadata.PackageMetadata") -> str:
    """What a package says: an SPDX expression, else a short text, else classifiers."""
    said = about.get("License-Expression") or about.get("License") or ""
    if not 0 < len(said) < 40:
        classifiers = about.get_all("Classifier") or []
        said = ", ".join(c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: OSI"))
    if not said:
        sys.exit(f"{about['Name']} does not say under which licence it is")
    if re.search(r"\bA?GPL|GNU (Affero )?General", said):
        sys.exit(f"{about['Name']} is under {said}, which reaches the service that uses it")
    return said


def libraries() -> list[str]:
    """The kinds of shared libraries that come along in the wheels of what is deployed."""
    names = {name for requirements in PACKED for name, _, _ in packages(ROOT / requirements)}
    found = {
        file.name.split("-")[0].split(".")[0] for name in names for file in metadata.files(name) or [] if ".libs/" in str(file)
    }
    if unknown := found - LIBRARIES.keys():
        sys.exit(f"scripts/licences.py does not know the licence of {', '.join(sorted(unknown))}")
    return sorted(LIBRARIES)


def document() -> str:
    """The page."""
    lines = [
        "# Licences of what is deployed",
        "",
        "The service itself is under the MIT licence. `make licences` writes this from what the installed packages say.",
    ]
    for requirements, where in PACKED.items():
        lines += ["", f"## {where[0].upper()}{where[1:]}", "", "| package | version | licence |", "| --- | --- | --- |"]
        lines += [f"| {name} | {version} | {said} |" for name, version, said in packages(ROOT / requirements)]
    lines += ["", "## Libraries in the wheel of `psycopg-binary`", "", "| library | licence |", "| --- | --- |"]
    lines += [f"| {name} | {LIBRARIES[name]} |" for name in libraries()]
    return "\n".join(lines) + "\n" + REST


def main() -> None:
    """Write the page, or compare it."""
    text = document()
    if "--check" not in sys.argv:
        DOCUMENT.write_text(text)
    elif not DOCUMENT.exists() or DOCUMENT.read_text() != text:
        sys.exit("docs/licences.md differs from what is installed: run `make licences` and commit it")


if __name__ == "__main__":
    main()
