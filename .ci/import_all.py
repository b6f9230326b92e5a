"""Imports every module of the installed perturbk, and makes sure that it is the installed one."""

import importlib
import pkgutil
import sysconfig
from importlib import resources
from pathlib import Path

import perturbk

site = Path(sysconfig.get_path("purelib")).resolve()
names = [m.name for m in pkgutil.walk_packages(perturbk.__path__, "perturbk.")]
for name in names:
    if name.endswith("__main__") or name.startswith("perturbk.kernels.triton_"):
        continue  # Triton's kernels need the extra
    module = importlib.import_module(name)
    assert module.__file__ and Path(module.__file__).resolve().is_relative_to(site), module
for package in ("perturbk", "perturbk.kernels"):
    assert (resources.files(package) / "py.typed").is_file(), f"{package} has no py.typed"
print(f"{len(names)} modules of perturbk imported from site-packages")
