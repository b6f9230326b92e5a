"""check_dist.py CHECKOUT DIST: the wheel is the package and no more, the sdist has its tests."""

import sys
import tarfile
import zipfile
from pathlib import Path


def below(root, *patterns):
    return {str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern)}


def main(checkout, dist):
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")
    package = below(checkout, "perturbk/*.py", "perturbk/py.typed")
    kernels = below(checkout, "kernels/*.py", "kernels/py.typed")

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    metadata = {n for n in names if n.split("/")[0].endswith(".dist-info")}
    expected = package | {f"perturbk/{name}" for name in kernels}
    assert names - metadata == expected, f"wheel differs in {sorted(names - metadata ^ expected)}"
    assert any(n.endswith("/LICENSE") for n in metadata), f"wheel lacks LICENSE: {sorted(metadata)}"

    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    expected = package | kernels | below(checkout, "tests/**/*.py", "bench/**/*.py")
    expected |= {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"}
    assert expected <= names, f"sdist lacks {sorted(expected - names)}"
    print(f"{wheel.name}: {len(package)} + {len(kernels)} files; {sdist.name}: {len(names)} names")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
