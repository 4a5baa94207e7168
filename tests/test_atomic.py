"""Files appear whole or not at all, and what killed writers left is removed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qllama.atomic import OutputFiles, same_file, write_file
from qllama.errors import FileError, InputError

# Writes a megabyte at a time, says when it has begun, and never ends before it is killed.
WRITER = """
import sys, time
from qllama.atomic import OutputFiles
with OutputFiles([sys.argv[1]], [1 << 30], [], force=True) as out:
    print("begun", flush=True)
    while True:
        out.files[0].write(bytes(1 << 20))
        time.sleep(0.001)
"""


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_written_whole(tmp_path):
    write_file(tmp_path / "a", [b"one", b"two"], 6)
    assert (tmp_path / "a").read_bytes() == b"onetwo" and names(tmp_path) == ["a"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), OutputFiles([tmp_path / "a"], [3], [], force=True) as out:
        out.files[0].write(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_an_existing_file_needs_force(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileError, match="--force"):
        write_file(tmp_path / "a", [b"new"], 3)
    write_file(tmp_path / "a", [b"new"], 3, force=True)
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_file_that_is_read_is_never_replaced(tmp_path):
    source = tmp_path / "in"
    source.write_bytes(b"model")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(source)
    for name in ("in", "hard", "soft"):
        with pytest.raises(FileError, match="is the same file as"):
            write_file(tmp_path / name, [b"x"], 1, [source], force=True)
    assert source.read_bytes() == b"model" and same_file(source, tmp_path / "hard")
    assert not same_file(source, tmp_path / "none")


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_file(tmp_path / "link", [b"new"], 3, force=True)
    assert (tmp_path / "target").read_bytes() == b"new" and (tmp_path / "link").is_symlink()


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match="is a directory"):
        write_file(tmp_path, [b""], 0, force=True)
    with pytest.raises(FileError, match="does not exist"):
        write_file(tmp_path / "none" / "a", [b""], 0)
    with pytest.raises(FileError, match=r"needs \d+ bytes, \d+ are free"):
        write_file(tmp_path / "a", [b""], 1 << 60)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileError, match="not a regular file"):
        write_file(tmp_path / "fifo", [b""], 0, force=True)
    assert names(tmp_path) == ["fifo"]


def test_several_files_appear_together(tmp_path):
    with OutputFiles([tmp_path / "a", tmp_path / "b"], [1, 1], [], force=False) as out:
        out.files[0].write(b"1")
        out.files[1].write(b"2")
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a", "b"]


def test_two_writers_of_one_file(tmp_path):
    with OutputFiles([tmp_path / "a"], [1], [], force=False) as out:
        with pytest.raises(InputError, match=r"cannot be written|another process"):
            write_file(tmp_path / "a", [b"x"], 1)
        out.files[0].write(b"y")
    assert (tmp_path / "a").read_bytes() == b"y" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05])
def test_a_killed_writer_leaves_nothing_for_long(tmp_path, delay):
    (tmp_path / "a").write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "a")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "a").read_bytes() == b"old" and len(names(tmp_path)) == 2
    write_file(tmp_path / "a", [b"new"], 3, force=True)
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]
