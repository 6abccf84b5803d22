"""Contents and metadata of the wheel and the source distribution."""

import email
import re
import struct
import tarfile
import zipfile

import pytest


@pytest.fixture
def archive(wheel):
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def test_wheel_contains_the_package_and_one_executable(archive, version, sources):
    package = {name.removeprefix("python/") for name in sources if name.startswith("python/pyro_mcp/")}
    information = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    expected = {f"pyro_mcp-{version}.data/scripts/pyro", *(f"pyro_mcp-{version}.dist-info/{name}" for name in information)}
    assert set(archive.namelist()) == package | expected
    assert "pyro_mcp/py.typed" in package
    executable = [entry.filename for entry in archive.infolist() if entry.external_attr >> 16 & 0o111]
    assert executable == [f"pyro_mcp-{version}.data/scripts/pyro"]


def test_wheel_tag(wheel, archive, version):
    stated = email.message_from_bytes(archive.read(f"pyro_mcp-{version}.dist-info/WHEEL"))
    tags = {"py3-none-manylinux2014_x86_64", "py3-none-manylinux_2_17_x86_64"}
    assert set(stated.get_all("Tag")) == tags
    name, python, abi, platforms = wheel.stem.rsplit("-", 3)
    assert name == f"pyro_mcp-{version}"
    assert {f"{python}-{abi}-{platform}" for platform in platforms.split(".")} == tags


def test_executable_is_static(archive, version):
    with archive.open(f"pyro_mcp-{version}.data/scripts/pyro") as file:
        start = file.read(4096)
    assert start[:5] == b"\x7fELF\x02"
    (offset,) = struct.unpack_from("<Q", start, 32)
    size, count = struct.unpack_from("<HH", start, 54)
    kinds = {struct.unpack_from("<I", start, offset + index * size)[0] for index in range(count)}
    loaded, names_its_loader = 1, 3
    assert loaded in kinds and names_its_loader not in kinds


def test_the_metadata(archive, version):
    metadata = email.message_from_bytes(archive.read(f"pyro_mcp-{version}.dist-info/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("pyro-mcp", version)
    assert metadata["Requires-Python"] == ">=3.9"
    assert (metadata["License-Expression"], metadata["License-File"]) == ("MIT", "LICENSE")
    assert metadata["Description-Content-Type"].startswith("text/markdown")
    assert metadata.get_payload().startswith("# pyro\n")
    assert metadata.get_all("Provides-Extra") == ["inspect"]
    # Without extras, there are no dependencies.
    assert all("extra == 'inspect'" in requirement for requirement in metadata.get_all("Requires-Dist"))
    entries = archive.read(f"pyro_mcp-{version}.dist-info/entry_points.txt").decode()
    assert entries.split() == ["[inspect_ai]", "pyro_mcp=pyro_mcp.integrations.inspect"]


def test_source_distribution_contains_exactly_the_build_inputs(sdist, version, sources):
    kept = re.compile(r"crates/[^/]+/(Cargo\.toml|build\.rs|openrpc\.json|src/.*)|python/pyro_mcp/.*")
    expected = {name for name in sources if kept.fullmatch(name) and not name.endswith(".snap")}
    expected |= {".cargo/config.toml", "Cargo.lock", "Cargo.toml", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert {name.partition("/")[0] for name in names} == {f"pyro_mcp-{version}"}
    assert {name.partition("/")[2] for name in names} == expected
