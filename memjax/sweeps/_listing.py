"""The list of the files of a folder that memjax wrote, with their sizes and digests.

It is written last, so that it says two things: that the folder is whole, and what in it is
memjax's. The list of a store that a sweep still writes to says besides which arrays grow: their
chunks have checksums of their own, and come with the chunk of the last of these arrays, or count as
not written.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ._chunks import is_intact

LIST = "memjax.json"
# A file that is being written; what was left of one is no part of a store.
_TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.[0-9a-f]{8}\.tmp")
_CHUNK = re.compile(r"([^/]+)/(c(?:\.\d+)+)")
# What a store says of the sweep that writes to it.
_NOTE = re.compile(r"(errors|running)/[\w-]+\.json")


class FileList(NamedTuple):
    """What a list says of a folder.

    **Attributes:**

    - `files`: size and digest of each of its files.
    - `growing`: the arrays whose chunks are still written, the one that marks the others' last;
        nothing for folders that are no store of a sweep.
    - `holds`: stores and files that come into it later.
    """

    files: dict[str, tuple[int, str]]
    growing: tuple[str, ...] | None
    holds: tuple[str, ...] = ()

    def grows(self, name: str) -> bool:
        """Whether a file is a chunk that was written since."""
        found = _CHUNK.fullmatch(name)
        return found is not None and found[1] in (self.growing or ())

    def passes(self, name: str) -> bool:
        """Whether a file is none that is read, but one that a sweep leaves there."""
        if self.growing is None and not self.holds:
            return False
        return bool(_TEMPORARY.fullmatch(name) or _NOTE.fullmatch(name))

    def prepares(self, name: str) -> bool:
        """Whether a file is a lock of something that the folder holds, or such a thing in the
        making."""
        made = rf"\.(?:{'|'.join(map(re.escape, self.holds))})"
        left = r"(\.[\w-]+)?\.lock|\.[0-9a-f]{8}\.(partial|old)(/.*)?"
        return bool(self.holds) and re.fullmatch(f"{made}({left})", name) is not None


def files_in(folder: Path) -> Iterator[str]:
    """All that is in a folder but folders, as paths relative to it; links are not followed."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            # Another writer may remove its folder of notes meanwhile.
            with suppress(FileNotFoundError):
                yield from (f"{entry.name}/{name}" for name in files_in(Path(entry.path)))
        else:
            yield entry.name


def write_list(
    folder: Path,
    growing: tuple[str, ...] | None = None,
    holds: tuple[str, ...] = (),
) -> None:
    """Write the list of the files of a folder into it, which marks it as whole and as memjax's.

    **Arguments:**

    - `folder`: the folder.
    - `growing`: the arrays whose chunks are still written, which are left out.
    - `holds`: stores and files that come into the folder later.
    """
    listed = FileList({}, growing, holds)
    files = {}
    for name in files_in(folder):
        if name.partition("/")[0] in holds or listed.prepares(name):
            continue
        if name != LIST and not listed.grows(name) and not listed.passes(name):
            files[name] = _digested((folder / name).read_bytes())
    content: dict[str, Any] = {"memjax": version("memjax"), "files": files}
    if holds:
        content["holds"] = list(holds)
    if growing is not None:
        content["growing"] = list(growing)
    write_synced(folder / LIST, _encoded(content))


def _digested(data: bytes) -> list[Any]:
    return [len(data), hashlib.sha256(data).hexdigest()]


def write_synced(file: Path, data: bytes) -> None:
    """Write a file that is there wholly or as it was before, also after a power failure."""
    partial = temporary(file)
    try:
        write_through(partial, data)
        os.replace(partial, file)
    except BaseException:
        remove(partial)
        raise
    sync_folder(file.parent)


def temporary(file: Path) -> Path:
    """A name for a file while it is written."""
    return file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")


def write_through(file: Path, data: bytes) -> None:
    """Write a file onto the disk."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Have the names of a folder on the disk, where the system knows how."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed now is left to the next writer."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass


def read_list(folder: Path) -> FileList:
    """What memjax wrote into a folder.

    **Raises:**

    `ValueError` if the list is not as it was written, `OSError` if there is none.
    """
    data = (folder / LIST).read_bytes()
    try:
        content = json.loads(data)
        content.pop("digest")
        if _encoded(content) == data:
            files = {name: _entry(entry) for name, entry in content["files"].items()}
            growing = content.get("growing")
            growing = None if growing is None else tuple(map(str, growing))
            return FileList(files, growing, tuple(map(str, content.get("holds", ()))))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{LIST!r} is damaged")


def _entry(entry: Any) -> tuple[int, str]:
    size, digest = entry
    return int(size), str(digest)


def _encoded(content: dict[str, Any]) -> bytes:
    """The list with a digest of itself."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps(content | {"digest": digest}, sort_keys=True, indent=1) + "\n").encode()


def known_files(folder: Path) -> Callable[[str], bool]:
    """Whether memjax wrote a file of a folder, by its list and those of the stores in it."""
    try:
        listed = read_list(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return lambda name: False
    inner = {name: known_files(folder / name) for name in listed.holds}

    def known(name: str) -> bool:
        if name == LIST or name in listed.files or name in listed.holds:
            return True
        if listed.grows(name) or listed.passes(name) or listed.prepares(name):
            return True
        held, _, rest = name.partition("/")
        return held in inner and inner[held](rest)

    return known


def read_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder that memjax wrote, checked against its list, or against their own
    checksums if they are chunks of a store that is still written.

    **Raises:**

    `ValueError` that names the file for anything that is not as it was written; `OSError` for what
    cannot be read.
    """
    listed = read_list(folder)
    found = [name for name in files_in(folder) if name != LIST and not listed.passes(name)]
    grown = {name for name in found if listed.grows(name)}
    for name in sorted(set(listed.files) ^ (set(found) - grown)):
        known = name in listed.files
        raise ValueError(f"{name!r} is {'missing' if known else 'not one of its files'}")
    contents = {}
    for name, entry in listed.files.items():
        contents[name] = data = _read_regular(folder, name)
        if (len(data), hashlib.sha256(data).hexdigest()) != entry:
            raise ValueError(f"{name!r} is damaged")
    for name in sorted(grown):
        array, _, chunk = name.partition("/")
        assert listed.growing
        mark = f"{listed.growing[-1]}/{chunk}"
        if mark in grown:
            contents[name] = data = _read_regular(folder, name)
            if not is_intact(data):
                raise ValueError(f"{name!r} is damaged")
            if array == listed.growing[-1]:
                for other in listed.growing:
                    if f"{other}/{chunk}" not in grown:
                        raise ValueError(f"'{other}/{chunk}' is missing")
    return contents


def _read_regular(folder: Path, name: str) -> bytes:
    if not stat.S_ISREG(os.lstat(folder / name).st_mode):
        raise ValueError(f"{name!r} is not a file of its own")
    return (folder / name).read_bytes()
