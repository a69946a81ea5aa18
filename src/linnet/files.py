"""Writing files. Whatever linnet writes is written here, and no torch is needed for it.

A file or a folder is built under a hidden name beside its own, flushed to the disk, and renamed when it is whole:
whoever is killed at any moment leaves the old one or the new one. A hidden name is `.NAME.RANDOM.part` (may always
be removed) or `.NAME.RANDOM.old` (goes back to NAME if that is missing); the next call that writes NAME sees to
both, unless a living process holds the lock on them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import fnmatch
import os
import re
import secrets
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnet.errors import BadInput, LinnetError, RunFailed
from linnet.progress import Progress

# Of the machine, not of a name.
FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
CHUNK = 1 << 20
HIDDEN = r"\.(.+)\.[0-9a-f]{8}\.(?:part|old)"
OLDER = r"\.(.+)\.[0-9]+"  # as older versions named what was on its way; not removed, and not foreign
IN_USE = "{} is in use: another process is writing it; wait until it ends, or stop it"


@dataclass(frozen=True)
class Layout:
    """What a folder of ours holds: `--force` replaces a folder that has the marker and no file besides these."""

    what: str  # for people: "a run"
    marker: str
    names: tuple[str, ...]  # patterns of whole relative paths; * stands for / too


# Refusing before any work is done


def refuse_existing(path: Path, *, force: bool, layout: Layout | None = None, option: str = "--out") -> None:
    """Say at once why a file (or, with a layout, a folder) cannot be written there.

    `force` replaces a file, and a folder only if linnet wrote all that is in it.
    """
    what = layout.what if layout else "a file"
    if not is_utf8(path):
        raise BadInput(f"{option} {str(path)!r} is no name in UTF-8; choose another")
    if path.name in ("", ".."):
        raise BadInput(f'{option} "{path}" is no name for {what}; choose another')
    with in_words(path, "write into"):
        _refuse_above(path)
        tidy(path)
        if not os.path.lexists(path) or (layout and path.is_dir() and _is_empty(path)):
            return
    if not force:
        raise BadInput(f"{path} exists; choose another name, or replace it with --force")
    if layout is None:
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "no plain file"
            raise BadInput(f"{path} exists and is {kind}, so --force does not replace it")
        return
    if Path.cwd().is_relative_to(os.path.realpath(path)):
        raise BadInput(f"{path} is the folder you are in, so --force does not replace it")
    if path.is_dir() and _is_in_use(path):
        raise BadInput(IN_USE.format(path))
    if not path.is_dir() or not (path / layout.marker).is_file():
        raise BadInput(f"{path} exists and is not {layout.what}, so --force does not replace it")
    if foreign := foreign_files(path, layout):
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise BadInput(
            f"{path} holds files that linnet did not write ({', '.join(foreign[:5])}{more}), so --force does not "
            "replace it; move them, or choose another name"
        )


def is_utf8(path: Path) -> bool:
    """Whether a name can be written down: other bytes are half characters in it."""
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def foreign_files(folder: Path, layout: Layout) -> list[str]:
    """The files in a folder that no part of the layout names, by their relative paths."""
    found = []
    for above, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        for name in sorted((*names, *links)):
            relative = Path(above, name).relative_to(folder)
            meant = "/".join(_final_name(part) for part in relative.parts)
            if not any(fnmatch.fnmatchcase(meant, pattern) for pattern in layout.names):
                found.append(str(relative))
    return found


def refuse_within(folder: Path, sources: Iterable[Path]) -> None:
    """A folder that is going to be replaced must not hold what is still to be read."""
    for source in sources:
        if source.resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{folder} would be replaced, and {source}, which is to be read, lies in it")


def _is_empty(folder: Path) -> bool:
    """Whether there is nothing in it but what a process that was killed left on its way."""
    return all(_final_name(name) != name for name in os.listdir(folder))


def _refuse_above(path: Path) -> None:
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise BadInput(f"cannot write into {path}: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise BadInput(f"cannot write into {path}: no permission at {above}")


# Errors in words


@contextlib.contextmanager
def in_words(path: Path, doing: str = "write", hidden: Path | None = None) -> Iterator[None]:
    """What the system says about this path, for people: a full or broken disk failed, a wrong name is bad input.

    Where other files are read meanwhile, `hidden` is what is written; errors about other names pass unchanged.
    """
    try:
        yield
    except LinnetError:
        raise
    except Exception as error:
        code = _code(error)
        if code in FAILURES:
            raise RunFailed(f"could not {doing} {path}: {os.strerror(code)}") from error
        about = getattr(error, "filename", None)
        elsewhere = hidden is not None and not str(about).startswith(str(hidden))
        if not isinstance(error, OSError) or elsewhere:
            raise
        raise BadInput(f"cannot {doing} {path}: {error.strerror or error}") from error


def _code(error: BaseException) -> int:
    """The number of a system error, 0 for other errors; libraries in Rust only spell it out."""
    if isinstance(error, OSError):
        return error.errno or 0
    spelled = re.search(r"\(os error (\d+)\)", str(error))
    return int(spelled[1]) if spelled else 0


# Writing files


def write_atomically(path: Path, content: bytes) -> None:
    """One small file, old or new at any moment."""
    with new_file(path) as hidden:
        _fill(hidden, [content])


def write_lines(path: Path, lines: Iterable[str], *, force: bool = True) -> None:
    """A text file from lines that bring their own line ends; compressed if its name ends with .gz."""
    write_texts({path: lines}, force=force)


def write_texts(texts: Mapping[Path, Iterable[str]], *, force: bool = True) -> None:
    """Several of them, all or none."""
    with new_files(list(texts), force=force) as hidden:
        for part, (path, lines) in zip(hidden, texts.items(), strict=True):
            pieces = _in_chunks(line.encode() for line in lines)
            _fill(part, _compressed(pieces) if path.name.endswith(".gz") else pieces)


def _fill(hidden: Path, pieces: Iterable[bytes]) -> None:
    handle = os.open(hidden, os.O_WRONLY)
    try:
        for piece in pieces:
            append(handle, piece)
    finally:
        os.close(handle)


def open_log(path: Path, kept: int) -> int:
    """A handle at the end of a file of lines of which so many bytes stay; it is made if it is missing.

    Where fewer are there, some were lost with a machine that crashed: whole lines stay, and no hole is left.
    """
    with in_words(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        there = os.pread(handle, kept, 0) if os.fstat(handle).st_size < kept else b""
        os.ftruncate(handle, there.rfind(b"\n") + 1 if os.fstat(handle).st_size < kept else kept)
        os.lseek(handle, 0, os.SEEK_END)
        return handle


def append(handle: int, content: bytes) -> None:
    """All of these bytes at the end of an open file."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _in_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= CHUNK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


def _compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A gzip file without a name and a time in it, so that equal lines give equal bytes."""
    packer = zlib.compressobj(6, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = True) -> Iterator[Path]:
    """A hidden empty file that gets its name when the block ends well; for writers that open files by name."""
    with new_files([path], force=force) as (hidden,):
        yield hidden


@contextlib.contextmanager
def new_files(paths: Sequence[Path], *, force: bool = True) -> Iterator[list[Path]]:
    """Several of them: none gets its name before all are whole."""
    hidden: list[Path] = []
    handles: list[int] = []
    finals = [Path(os.path.realpath(path)) for path in paths]
    try:
        for path, final in zip(paths, finals, strict=True):
            refuse_existing(path, force=force)
            with in_words(path):
                os.makedirs(final.parent, exist_ok=True)
                hidden.append(_hidden(final, "part"))
                handles.append(os.open(hidden[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
                _lock(handles[-1])
        with contextlib.ExitStack() as words:
            for path, part in zip(paths, hidden, strict=True):
                words.enter_context(in_words(path, hidden=part))
            yield list(hidden)
        for path, part in zip(paths, hidden, strict=True):
            with in_words(path):
                sync(part)
        for path, part, final in zip(paths, hidden, finals, strict=True):
            with in_words(path):
                os.replace(part, final)
                sync(final.parent)
    except BaseException:
        for part in hidden:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise
    finally:
        for handle in handles:
            os.close(handle)


# Writing folders


class NewFolder:
    """A folder on its way: `path` is hidden until `install` gives it its name. What was there is kept aside until
    the end, and comes back if the rest fails."""

    def __init__(self, final: Path) -> None:
        self.final = Path(os.path.realpath(final))
        self.path = _hidden(self.final, "part")
        self.old: Path | None = None  # what had the name before, for as long as it is there

    def write(self, name: str, content: bytes) -> None:
        """One of its files."""
        with in_words(self.final / name):
            handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                append(handle, content)
            finally:
                os.close(handle)

    def install(self) -> None:
        if self.path == self.final:
            return
        _flush(self.path)
        hidden = self.path
        if not os.path.lexists(self.final) or (self.final.is_dir() and not os.listdir(self.final)):
            os.rename(hidden, self.final)
        elif exchange(hidden, self.final):
            self.old = hidden
        else:
            aside = _hidden(self.final, "old")
            os.rename(self.final, aside)
            self.old = aside
            os.rename(hidden, self.final)
        self.path = self.final
        sync(self.final.parent)

    def undo(self) -> None:
        """Bring back what was there, and remove what was to replace it."""
        new = self.path
        if new == self.final and self.old is not None and exchange(self.old, new):
            new, self.old = self.old, None
        elif new == self.final:
            new = _hidden(self.final, "part")
            os.rename(self.final, new)
        if self.old is not None:
            os.rename(self.old, self.final)
        _delete(new)


@contextlib.contextmanager
def new_folder(path: Path, layout: Layout | None = None, *, force: bool = False) -> Iterator[NewFolder]:
    """A folder that gets its name when the block ends well, and goes away when it does not.

    Without a layout whatever has the name is replaced. The folder is locked while it is built.
    """
    if layout is not None:
        refuse_existing(path, force=force, layout=layout)
    with contextlib.ExitStack() as locks:
        with in_words(path):
            new = NewFolder(path)
            tidy(new.final)
            os.makedirs(new.final.parent, exist_ok=True)
            if new.final.is_dir():
                locks.enter_context(locked(new.final))
            os.mkdir(new.path)
        try:
            locks.enter_context(locked(new.path))
            with in_words(path, hidden=new.path):
                yield new
            with in_words(path):
                new.install()
        except BaseException:
            with contextlib.suppress(OSError):
                new.undo()
            raise
        if new.old is not None:
            with contextlib.suppress(OSError):  # the next call that writes there names what cannot be removed
                _delete(new.old)


def _flush(folder: Path) -> None:
    """Everything in a folder onto the disk, with the permissions that the user's umask gives to new files."""
    allowed = stat.S_IMODE(os.stat(folder).st_mode) & 0o666
    for above, _, names in os.walk(folder):
        for name in names:
            file = Path(above, name)
            if stat.S_IMODE(os.stat(file).st_mode) != allowed:
                os.chmod(file, allowed)
            sync(file)
        sync(Path(above))


def exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    at_working_folder, swap = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


# Removing


def remove(path: Path) -> None:
    """A file or a whole folder: it loses its name first, so that nobody ever finds half of it."""
    with in_words(path, "remove"):
        tidy(path)
        if os.path.lexists(path):
            hidden = _hidden(path, "part")
            os.rename(path, hidden)
            _delete(hidden)
            sync(path.parent)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):
            _delete(path / name)
        os.rmdir(path)
    else:
        os.unlink(path)


def tidy(path: Path) -> None:
    """See to what killed processes left beside a path: what was complete comes back, the rest goes away."""
    tidy_within(path.parent, path.name)


def tidy_within(folder: Path, final: str | None = None) -> None:
    """The same for everything in a folder, or for what was to get one name."""
    for name in sorted(os.listdir(folder)) if folder.is_dir() else []:
        meant, leftover = _final_name(name, *([HIDDEN] if final else ())), folder / name
        if meant == name or final not in (None, meant) or _is_in_use(leftover):
            continue
        try:
            if name.endswith(".old") and not os.path.lexists(folder / meant):
                os.rename(leftover, folder / meant)
            else:
                _delete(leftover)
        except FileNotFoundError:  # another process did it
            continue
        except OSError as error:
            why = error.strerror or error
            raise BadInput(f"{leftover} was left by a process that was killed; remove it ({why})") from None


def _hidden(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.{kind}")


def _final_name(name: str, *forms: str) -> str:
    """The name that something on its way will get."""
    found = next(filter(None, (re.fullmatch(form, name, re.DOTALL) for form in forms or (HIDDEN, OLDER))), None)
    return found[1] if found else name


# Locks and the disk


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Only this process changes the folder meanwhile; the lock ends with the process, however that ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle):
            if not wait:
                raise BadInput(IN_USE.format(folder))
            with Progress(f"waiting for another process that writes {folder}") as progress:
                progress.update(0, at_once=True)
                _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool = False) -> bool:
    """False if another process has the lock; some network disks have no locks, and nothing is locked there."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_in_use(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks flush no folders
            raise
    finally:
        os.close(handle)
