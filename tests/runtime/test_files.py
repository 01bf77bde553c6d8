import errno
import hashlib
import os

import pytest

from wnlb.runtime.errors import WnlbError
from wnlb.runtime.files import atomic_path, sha256_of


def test_writes_a_whole_file_beside_the_target_first(tmp_path):
    target = tmp_path / "model.onnx"
    with atomic_path(target) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".onnx")
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_the_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").write_text("")
    with atomic_path(tmp_path / "target") as temporary:
        temporary.write_text("")
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "other").stat().st_mode


def write_half(target, error: BaseException) -> None:
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), WnlbError("bad")])
def test_an_error_in_the_block_leaves_the_old_file_alone(tmp_path, error):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(type(error)):
        write_half(target, error)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(WnlbError, match="No space left on device") as refused:
        write_half(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(target) in str(refused.value)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_refused_before_the_block(tmp_path):
    (tmp_path / "folder").mkdir()
    for target, said in (
        (tmp_path / "missing" / "model.onnx", "does not exist"),
        (tmp_path / "folder", "is a folder"),
        ("/proc/model.onnx", "/proc/model.onnx cannot be written"),  # not even by root
    ):
        with pytest.raises(WnlbError, match=said), atomic_path(target):
            pytest.fail("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_sha256_of(tmp_path):
    data = bytes(range(256)) * 5000  # more than one block of 1 MiB
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
