"""The bill of materials: CycloneDX's own schema takes it, and it names every wheel and what it needs."""

import json

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from fakes.wheels import own_wheel_at, write_wheel

from ltx_export.bundle.materials import bill_of_materials
from ltx_export.bundle.wheel_file import read_wheel
from ltx_runtime.spec.versions import VERSIONS

LICENCES = {
    "License-Expression: MIT OR (Apache-2.0 WITH LLVM-exception)": {
        "expression": "MIT OR (Apache-2.0 WITH LLVM-exception)"
    },
    "License: The Fox Licence, 2nd edition": {"license": {"name": "The Fox Licence, 2nd edition"}},
    "Classifier: License :: OSI Approved :: BSD License": {"license": {"name": "BSD License"}},
    "License: UNKNOWN": None,
}


@pytest.fixture
def wheels(tmp_path):
    """Makes wheels with every kind of licence that need each other, and this project's own."""
    others = [
        write_wheel(tmp_path, f"Fox.{number}", lines=[line], needs=[f"fox_{number + 1}>=1; sys_platform != 'none'"])
        for number, line in enumerate(LICENCES)
    ]
    own = own_wheel_at(tmp_path, needs=('fox-0; extra == "cpu"', "ltx-engines[cpu]; extra == 'all'"))
    return [*map(read_wheel, (own, *others))]


@pytest.mark.parametrize("version", ["demo", "0.9.8-2b-distilled"])
def test_a_bill_of_materials_is_what_the_schema_of_cyclonedx_demands(engines, wheels, version):
    text = bill_of_materials(VERSIONS[version], engines.manifest, wheels)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    damaged = text.replace("SHA-256", "SHA256")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(damaged) is not None


def test_it_names_every_wheel_with_its_checksum_and_licence_and_the_networks(engines, wheels):
    bill = json.loads(bill_of_materials(VERSIONS["demo"], engines.manifest, wheels))
    *libraries, networks = bill["components"]
    assert networks["type"] == "machine-learning-model"
    by_name = {one["name"]: one for one in libraries}
    for wheel in wheels:
        assert by_name[wheel.name]["hashes"] == [{"alg": "SHA-256", "content": wheel.sha256}]
    for number, licence in enumerate(LICENCES.values()):
        assert by_name[f"fox-{number}"].get("licenses") == (None if licence is None else [licence])


def test_it_says_which_wheel_needs_which_and_refers_only_to_what_it_lists(engines, wheels):
    bill = json.loads(bill_of_materials(VERSIONS["demo"], engines.manifest, wheels))
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    listed = {bill["metadata"]["component"]["bom-ref"], *(one["bom-ref"] for one in bill["components"])}
    assert len(listed) == len(bill["components"]) + 1
    assert needs.keys() == listed and {ref for others in needs.values() for ref in others} < listed
    assert needs["pkg:pypi/ltx-engines@0.1.0"] == ["pkg:pypi/fox-0@1.0"]
    assert needs["pkg:pypi/fox-0@1.0"] == ["pkg:pypi/fox-1@1.0"] and needs["pkg:pypi/fox-3@1.0"] == []
