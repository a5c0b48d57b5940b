"""Packaging. Every fact about the package stands in settings.ini; this file only hands them to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
package = settings["lib_path"]

extras = {
    name: settings[f"{name}_requirements"].split()
    for name in ("dev", "docs", "pretrained", "data", "onnx", "paper")
}
extras["all"] = sorted({requirement for group in extras.values() for requirement in group})

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license_expression="Apache-2.0 AND CC-BY-4.0 AND CC-BY-SA-4.0 AND MIT",  # of the code, and of the emoji images
    license_files=["LICENSE", f"{package}/data/emoji_licences.md"],
    keywords=settings["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[package, f"{package}.*"]),
    package_data={package: ["py.typed", "*.mplstyle", "data/emoji.zip", "data/*.md"]},
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{package}={package}._modidx:d"],
    },
    zip_safe=False,
)
