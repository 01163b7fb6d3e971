"""Files and folders that appear whole or not at all, and replace only what memjax wrote."""

import errno
import os
import re
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .._checks import as_path
from ._listing import files_in, known_files, LIST, remove, write_list

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def check_output(path: str | Path, overwrite: bool = False, folder: bool = True) -> Path:
    """Refuse, before any work is done, an output that could not be written.

    **Arguments:**

    - `path`: the file or folder to be written.
    - `overwrite`: whether it may replace what is there: a file a file, and a folder one that is
        empty or that memjax wrote, if nothing else was put into it since.
    - `folder`: whether it is a folder.

    **Returns:**

    The path, absolute.

    **Raises:**

    `FileExistsError` if it exists and may not be replaced, `PermissionError` or
    `NotADirectoryError` if it cannot be created, another `OSError` for a name that cannot be.
    """
    path = Path(os.path.abspath(as_path("path", path)))
    parent = path.parent
    with explained(path):
        _check_replaceable(path, overwrite, folder)
        while not parent.exists():
            parent = parent.parent
    if not parent.is_dir():
        raise NotADirectoryError(
            f"output {str(path)!r} cannot be written since {str(parent)!r} is a file; choose "
            "another name."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output {str(path)!r} cannot be written: no permission for {str(parent)!r}; choose "
            "another folder."
        )
    return path


def _check_replaceable(path: Path, overwrite: bool, folder: bool) -> None:
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    what = f"output {str(path)!r}"
    if not overwrite:
        raise FileExistsError(
            f"{what} exists already; choose another name, or overwrite it (`overwrite=True`, "
            "`--overwrite`)."
        )
    kind = stat.S_ISDIR if folder else stat.S_ISREG
    if not path.name or not kind(mode):
        wanted = "folder" if folder else "file"
        raise FileExistsError(
            f"{what} is there and is not a {wanted}, so that no {wanted} replaces it; choose "
            "another name."
        )
    if not folder:
        return
    # What is empty holds nothing to be lost.
    known = known_files(path)
    foreign = next((name for name in files_in(path) if not known(name)), None)
    if foreign is not None:
        raise FileExistsError(
            f"{what} holds {foreign!r}, which memjax is not known to have written, and is not "
            "replaced; choose another name, or remove it yourself."
        )


@contextmanager
def replacing(path: str | Path, overwrite: bool = False, folder: bool = True) -> Iterator[Path]:
    """A path to write to, which takes the name `path` only once it is whole.

    A folder gets a list of its files, unless the body writes one.
    If the body raises, what it wrote is removed and what was at `path` stays. Until the end no
    other writer can start on the same path. The replacement of a folder is two renames; if the
    process ends between them, the next writer puts back what was there.

    Arguments and errors are those of `check_output`; `FileExistsError` also if something is being
    written there.
    """
    path = check_output(path, overwrite, folder)
    made = _make_parents(path)
    token = uuid.uuid4().hex[:8]
    partial, old = (path.with_name(f".{path.name}.{token}.{end}") for end in ("partial", "old"))
    lock = lock_of(path)
    whole = False
    try:
        with explained(path, partial, old, lock), claimed(path):
            try:
                _tidy(path)
                _check_replaceable(path, overwrite, folder)
                yield partial
                if folder and not (partial / LIST).exists():
                    write_list(partial)
                _check_still(path, partial, overwrite, folder)
                _move(partial, path, old)
                whole = True
            finally:
                remove(partial)
                remove(old)
    finally:
        for parent in [] if whole else made:
            try:
                parent.rmdir()
            except OSError:
                break  # it is not empty any more


def _make_parents(path: Path) -> list[Path]:
    """Make the folder of an output; returns those that were not there, the deepest first."""
    missing = [parent for parent in path.parents if not parent.exists()]
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return missing


def lock_of(path: Path, part: str = "") -> Path:
    """The file whose lock a writer of an output holds, or of a part of it."""
    return path.with_name(f".{path.name}{part and '.'}{part}.lock")


@contextmanager
def claimed(path: Path, part: str = "", shared: bool = False) -> Iterator[None]:
    """Hold the lock of an output, or of a part of it, alone or shared with others of the kind; the
    system gives it back when the process ends, however it ends.

    Where files cannot be locked, nobody is kept from starting; which of two writers comes first is
    then decided by the rename at the end.
    """
    lock = lock_of(path, part)
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(file, 400).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise BeingWritten(path, part, holder) from None
        except OSError:
            pass
        try:
            # Its last holder may have removed it since it was opened.
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                break
        except FileNotFoundError:
            pass
        os.close(file)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        # Removed while it is held by nobody else: a removed lock is nobody's.
        if not shared or _is_alone(file):
            lock.unlink(missing_ok=True)
        os.close(file)


class BeingWritten(FileExistsError):
    """Somebody else holds the lock of an output, or of a part of it."""

    def __init__(self, path: Path, part: str, holder: str) -> None:
        what = f"{part.replace('-', ' ')} of output" if part else "output"
        super().__init__(
            f"{what} {str(path)!r} is being written by {holder}; wait for its end, or choose "
            "another name."
        )
        self.part = part


def _is_alone(file: int) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _tidy(path: Path) -> None:
    """Remove what writers left behind that were killed, and finish or undo their renames."""
    old = left_behind(path)
    if old is not None and not os.path.lexists(path):
        old.rename(path)
    for entry in path.parent.iterdir():
        if _belongs(entry, path, ".old") or _belongs(entry, path, ".partial"):
            remove(entry)


def left_behind(path: Path) -> Path | None:
    """What was at a path before a replacement of it that has not come to its end."""
    try:
        found = [
            entry for entry in path.absolute().parent.iterdir() if _belongs(entry, path, ".old")
        ]
    except OSError:
        return None
    return found[0] if found else None


def _belongs(entry: Path, path: Path, end: str) -> bool:
    """Whether a name is one under which `replacing` keeps something of the output."""
    return re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\{end}", entry.name) is not None


def _check_still(path: Path, partial: Path, overwrite: bool, folder: bool) -> None:
    """Look again before the end: what appeared meanwhile stays, and what was written, too."""
    try:
        _check_replaceable(path, overwrite, folder)
    except FileExistsError as error:
        kept = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        partial.rename(kept)
        raise FileExistsError(
            f"output {str(path)!r} appeared or changed while it was being written, and stays as "
            f"it is; what was to be there is in {str(kept)!r}."
        ) from error


def _move(partial: Path, path: Path, old: Path) -> None:
    if not os.path.lexists(path):
        if partial.is_dir():
            # Fails if there is a file, or a folder that is not empty, by now.
            partial.rename(path)
        else:
            _link(partial, path)
        return
    if not partial.is_dir():
        partial.replace(path)
        return
    try:
        path.rename(old)
        partial.rename(path)
    except BaseException:
        if not os.path.lexists(path) and os.path.lexists(old):
            old.rename(path)
        raise


def _link(partial: Path, path: Path) -> None:
    """Give a file its name, unless the name is taken by now."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links: take the name first.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        partial.replace(path)


@contextmanager
def explained(path: Path, *places: Path) -> Iterator[None]:
    """Errors of the system in one line, with the output that they are in the way of.

    Errors about other files than the output and `places` pass as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # it is in words already
            raise
        file = os.fspath(error.filename) if isinstance(error.filename, (str, os.PathLike)) else ""
        mine = file == str(path.parent) or any(
            file == str(place) or file.startswith(f"{place}{os.sep}") for place in (path, *places)
        )
        # Errors of writing itself do not say where.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        if not mine and (file or not full):
            raise
        fix = "free some space, or choose another folder" if full else "choose another name"
        raise type(error)(
            f"output {str(path)!r} cannot be written: {os.strerror(error.errno).lower()}; {fix}."
        ) from error
