"""Files that are written whole or not at all. What is in them is the caller's business.

A file is written under a temporary name beside its own, locked while it is written, flushed to the disk, and renamed.
Whatever happens before the renaming leaves what was there; temporary files that nobody holds any more are removed by
the next writing of the same file.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO

from qllama import cpu
from qllama.errors import FileError, InputError, printable

Path = str | os.PathLike[str]


class OutputFiles:
    """One or more new files that appear together when the `with` block ends without an error.

    paths: where they are to be; a symbolic link is followed. nbytes: their sizes. inputs: files that are read
    meanwhile and therefore must not be replaced. `files` are the open files to write to, in the order of `paths`.
    Raises FileError before anything is written: a path is an input, is there already and not `force`d, is no regular
    file, its folder is missing, or the disk has too little free space.
    """

    def __init__(self, paths: Sequence[Path], nbytes: Sequence[int], inputs: Iterable[Path], force: bool) -> None:
        self.paths = [os.path.realpath(path) for path in paths]
        self.files: list[BinaryIO] = []
        self._names = [f"{_prefix(path)}{os.getpid()}" for path in self.paths]
        inputs = list(inputs)
        self._inputs = {os.fspath(path): file_status(path) for path in inputs}
        for path in self.paths:
            _check_target(path, inputs, force)
            _remove_stale(path)
        _check_space(self.paths, nbytes)

    def __enter__(self) -> "OutputFiles":
        try:
            for name in self._names:
                self.files.append(_create(name))
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
            elif isinstance(error, OSError) and error.filename is None:  # of a write: a full disk, a limit
                raise self._failed(error) from error
        finally:
            self._discard()

    def _finish(self) -> None:
        for path, status in self._inputs.items():
            check_unchanged(path, status)
        try:
            for file in self.files:
                file.flush()
                os.fsync(file.fileno())
            for name, path in zip(self._names, self.paths, strict=True):
                os.replace(name, path)
        except OSError as error:
            raise self._failed(error) from error
        for folder in {os.path.dirname(path) for path in self.paths}:
            _sync_folder(folder)

    def _failed(self, error: OSError) -> FileError:
        return FileError(self.paths[0], f"cannot be written: {error.strerror or error}")

    def _discard(self) -> None:
        """Close the files and remove those that were not renamed."""
        for file, name in zip(self.files, self._names, strict=False):
            with contextlib.suppress(OSError):  # what is still in a buffer of a full disk
                file.close()
            with contextlib.suppress(FileNotFoundError):  # renamed
                os.unlink(name)
        self.files = []


def write_file(path: Path, chunks: Iterable[bytes], nbytes: int, inputs: Iterable[Path] = (),
               force: bool = False) -> None:  # fmt: skip
    """Write one file of `nbytes` bytes; see OutputFiles for how, and for what is refused."""
    with OutputFiles([path], [nbytes], inputs, force) as out:
        for chunk in chunks:
            out.files[0].write(chunk)


def file_status(file: Path | int) -> tuple[int, ...] | None:
    """Device, inode, size and time of writing of a file, by path or handle; None when it cannot be asked for."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(path: str, status: tuple[int, ...] | None) -> None:
    """Raises FileError when a file was written to since its `status`: what was read may be of both.

    A new file in its place is no matter: the old one is still what is read.
    """
    now = file_status(path)
    if now is not None and status is not None and now[:2] == status[:2] and now != status:
        raise FileError(path, "was changed by another program while it was read")


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths name one file, through links too; False when either is missing."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False


def _check_target(path: str, inputs: list[Path], force: bool) -> None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise FileError(path, f"the folder {printable(folder)} does not exist")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise FileError(path, error.strerror or str(error)) from None
    if not stat.S_ISREG(mode):
        raise FileError(path, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    for source in inputs:
        if same_file(source, path):
            raise FileError(path, f"is the same file as {printable(source)}, which is read")
    if not force:
        raise FileError(path, "exists already; --force replaces it")


def _check_space(paths: list[str], nbytes: Sequence[int]) -> None:
    """By folder: all files are written before the first old one goes."""
    for folder in {os.path.dirname(path) for path in paths}:
        need = sum(n for path, n in zip(paths, nbytes, strict=True) if os.path.dirname(path) == folder)
        free = shutil.disk_usage(folder).free
        if need > free:
            raise FileError(folder, f"needs {need} bytes, {free} are free on its disk")


def _prefix(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:200]}.qllama-tmp-")


def _create(path: str) -> BinaryIO:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from None
    file = os.fdopen(handle, "w+b")
    if not cpu.lock(file.fileno()):
        file.close()
        raise InputError(f"{printable(path)} is being written by another process")
    return file


def _stale(path: str) -> Iterator[str]:
    prefix = _prefix(path)
    with os.scandir(os.path.dirname(path)) as entries:
        for entry in entries:
            suffix = entry.path.removeprefix(prefix)
            if suffix != entry.path and suffix.isdigit():
                yield entry.path


def _remove_stale(path: str) -> None:
    """Remove what killed processes left; one that is being written is locked."""
    for leftover in _stale(path):
        with contextlib.suppress(OSError), open(leftover, "rb") as file:
            if cpu.lock(file.fileno()):
                os.unlink(leftover)


def _sync_folder(folder: str) -> None:
    """Make the new names last; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
