"""Prints the bill of materials of the image it runs in, as CycloneDX 1.6 JSON: Debian's packages and Python's.

    bill.py VERSION
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

INSTALLED = Path("/opt/ipsec")
FORMAT = "${Package} ${Version} ${Architecture}\n"


def main() -> None:
    image = Component(name="ipsec", version=sys.argv[1], type=ComponentType.CONTAINER)
    bom = Bom(components=[*debian(), *python()])
    bom.metadata.component = image
    bom.register_dependency(image, bom.components)
    print(JsonV1Dot6(bom).output_as_string(indent=1))


def debian() -> Iterator[Component]:
    for line in subprocess.check_output(["dpkg-query", "-W", "-f", FORMAT], text=True).splitlines():
        name, version, architecture = line.split()
        purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
        yield component(name, version, purl)


def python() -> Iterator[Component]:
    for site in INSTALLED.glob("lib/python3*/site-packages"):
        for found in distributions(path=[str(site)]):
            purl = PackageURL("pypi", None, found.name.lower(), found.version)
            yield component(found.name, found.version, purl, found)


def component(name: str, version: str, purl: PackageURL, found: Distribution | None = None) -> Component:
    about = found.metadata.get("Summary") if found else None
    return Component(
        name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl), description=about
    )


main()
