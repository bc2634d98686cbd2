"""Maps the top-level folders to ``segue.*``; every other setting is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = ("kernels", "models", "engine", "training", "bench", "serving")

packages = ["segue"]
package_dir = {"segue": "segue"}
for folder in FOLDERS:
    packages.append(f"segue.{folder}")
    package_dir[f"segue.{folder}"] = folder
    packages += [f"segue.{folder}.{inner}" for inner in find_packages(folder)]

setup(packages=packages, package_dir=package_dir)
