"""Files and folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from scvae_jax.checks import InputError, InputWarning, expect, one_line

try:
    import fcntl
except ImportError:
    # systems without file locks
    fcntl = None


def expect_writable(path: Path) -> None:
    """Refuse a path in a place that cannot be written to, before any work is done.

    Args:
        path: of what is to be written; folders above it may be absent.

    Raises:
        InputError: if the folder that is there is none, or may not be written to.
    """
    # the root has no folder above it; a link may lead nowhere
    parents = path.absolute().parents
    above = next((p for p in parents if p.is_symlink() or p.exists()), path)
    expect(
        above.is_dir() and os.access(above, os.W_OK),
        f"that {above} is not a folder that can be written to",
        f"one for {path.name}",
        "choose another path",
    )


def expect_file(path: Path, expected: str) -> None:
    """Refuse a path at which there is no file.

    Args:
        path: of what is to be read.
        expected: what it should be, for the message.

    Raises:
        InputError: if nothing or a folder is there.
    """
    kind = "a folder" if path.is_dir() else "no file"
    expect(path.is_file(), f"{kind} at {path}", expected, "check the path")


def expect_unlocked(path: Path, error: Exception) -> None:
    """Refuse a file that is whole, but may not be read here or now.

    Args:
        path: of the file.
        error: what reading it ended with.

    Raises:
        InputError: if the error is about locks or permissions.
    """
    if isinstance(error, BlockingIOError):
        raise InputError(
            f"found {path} locked by another program, expected a file that can be "
            "read, close it there"
        ) from None
    if "unable to lock" in str(error):
        raise InputError(
            f"found {path} on a file system without locks ({one_line(error)}), "
            "expected one that has them, set HDF5_USE_FILE_LOCKING=FALSE or copy it "
            "elsewhere"
        ) from None
    if isinstance(error, PermissionError):
        raise InputError(
            f"found {path}, which may not be read, expected a file that may, change "
            "its permissions"
        ) from None


def expect_free(path: Path, overwrite: bool) -> None:
    """Refuse a path at which no new file can be, before any work is done.

    Args:
        path: of the file to be.
        overwrite: whether it may replace one.

    Raises:
        InputError: if something is there, or nothing may be.
    """
    expect_writable(path)
    for odd, found, more in (
        (path.is_symlink(), f"a link at {path}", ""),
        (path.is_dir(), f"a folder at {path}", ""),
        (
            path.exists() and not overwrite,
            f"{path} there already",
            " or replace it (--overwrite)",
        ),
    ):
        expect(not odd, found, "a new file", f"choose another name{more}")


def cache_folder() -> Path:
    """Where the user's cache has what this package keeps from one run to the next.

    Returns:
        Its folder, which need not be there.

    Raises:
        RuntimeError: if the user's home is not known.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # a relative path there is to be ignored, says the XDG specification
    start = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return start / "scvae_jax"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, so that a file appears whole or not at all.

    Args:
        path: of the file.

    Yields:
        A path that takes the place of `path` at the end, or is gone after an error.
    """
    part = path.with_name(f".{secrets.token_hex(8)}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, so that it appears whole or not at all.

    Args:
        path: of the folder to be, absolute; one that is there is replaced at the end.

    Yields:
        A folder beside it that takes its place, or is gone after an error.
    """
    with folders_above(path):
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            yield part
            _replace(path, part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def lock(descriptor: int, found: str) -> None:
    """Hold an open file or folder against other processes until it is closed.

    Args:
        descriptor: of the open file; on systems without locks it is not held.
        found: what is found if another process holds it, for the message.

    Raises:
        InputError: if another process holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"found {found}, expected one at a time, wait until it is done and call "
            "again"
        ) from None
    except OSError:
        # a folder of a network that has no locks
        pass


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder if there is none, and hold it against other processes.

    Args:
        folder: its path; a file is held as one.

    Raises:
        InputError: if another process holds it.
    """
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        # where a folder cannot be opened either
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, f"that another process is at work in {folder}")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folders_above(path: Path) -> Iterator[None]:
    """Make the folders above a path; after an error those that were made are gone.

    Args:
        path: of a file or folder to be.
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for folder in made:
            # another may have come to need it, and the error is what is to be told
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _replace(path: Path, part: Path) -> None:
    """Move a finished folder to its place, and only then remove the old one."""
    # mkdtemp makes folders that only their owner can read: give the usual rights back
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o777 & ~mask)
    if not path.exists():
        os.replace(part, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
    old = aside / "run"
    try:
        os.replace(path, old)
        os.replace(part, path)
    except BaseException:
        # it may have come when both were done
        if old.exists() and not path.exists():
            # not os.replace, which is what has just failed
            shutil.move(old, path)
        raise
    finally:
        # else the old one is the only one
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        warnings.warn(
            f"what was at {path} cannot be removed and is left at {aside}",
            InputWarning,
            stacklevel=2,
        )
