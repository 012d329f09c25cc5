"""What pyproject.toml cannot say: the folder recipes/ is installed too, as kood/shipped."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["kood", "kood.*"]), "kood.shipped"], package_dir={"kood.shipped": "recipes"})
