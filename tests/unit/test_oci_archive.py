"""Images that were made and are brought in a file: into the site's store, whole or not at all."""

import io
import tarfile
from pathlib import Path

import pytest

from rootfs import write_archive
from skyrl_stack.oci.archive import load
from skyrl_stack.oci.listing import unused
from skyrl_stack.oci.reference import Reference
from skyrl_stack.oci.store import SiteStore

NAME = "localhost/made/here:1"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rootfs = tmp_path / "rootfs.tar"
    with tarfile.open(rootfs, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO())
    write_archive(rootfs, NAME, tmp_path / "image.tar")
    return tmp_path / "image.tar"


def test_it_is_in_the_store_by_its_name(archive: Path, tmp_path: Path) -> None:
    site = SiteStore(tmp_path / "site")
    [image] = load(archive, site)
    assert site.find(Reference.parse(NAME)) == image
    assert load(archive, site)[0].blobs == image.blobs
    assert b'"WorkingDir": "/testbed"' in site.blob(image.config.digest).read_bytes()


def test_a_task_file_keeps_it(archive: Path, tmp_path: Path) -> None:
    site = SiteStore(tmp_path / "site")
    [image] = load(archive, site)
    assert unused(site, days=-1, keep=[]) == [image]
    assert unused(site, days=-1, keep=[NAME]) == []
