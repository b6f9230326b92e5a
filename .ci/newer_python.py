"""Prints a Python newer than the one that runs this, if a working one is at hand; else nothing.

Looked for, newest first: PERTURBK_NEWER_PYTHON (then only that one, and it must work; empty means
none), python3.14 to python3.12 on PATH, and installations beside that of the running one. Some
names on PATH are launchers of versions that are not there: each that fails is named on stderr.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MINORS = (14, 13, 12)  # those that jax has wheels for and we mean to support
PROBE = "import ensurepip, sys, venv; print(*sys.version_info[:3], sys.version_info.releaselevel)"


def fault(python):
    """Why this interpreter is of no use; None if it is."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE], capture_output=True, text=True, timeout=30, check=True
        )
        major, minor, _, level = done.stdout.split()
    except subprocess.CalledProcessError as error:
        return f"exit status {error.returncode}: {error.stderr.strip().partition(chr(10))[0]}"
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return str(error)
    if (int(major), int(minor)) <= sys.version_info[:2] or level != "final":
        return f"version {major}.{minor} {level}"
    return None


def candidates():
    siblings = Path(sys.base_prefix).parent
    for minor in MINORS:
        if minor <= sys.version_info[1]:
            return
        name = f"python3.{minor}"
        for folder in os.get_exec_path():
            if found := shutil.which(name, path=folder):
                yield found
        yield from map(str, sorted(siblings.glob(f"*/bin/{name}"), reverse=True))


def main():
    named = os.environ.get("PERTURBK_NEWER_PYTHON")
    if named is not None:
        if named and (why := fault(named)):
            sys.exit(f"PERTURBK_NEWER_PYTHON={named} is of no use: {why}")
        print(named)
        return
    for python in dict.fromkeys(candidates()):
        why = fault(python)
        if why is None:
            print(python)
            return
        print(f"skipped {python}: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
