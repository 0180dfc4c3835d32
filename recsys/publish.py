"""The one way anything durable is written: encoders, days, checkpoints, bundles, reports.

```
root/
  CURRENT                      the name of the version that readers take
  20261003T081500.123456Z-1f/  one version: never overwritten, never renamed again
    MANIFEST.json              kind, metadata, size and SHA-256 of every file
    ...
```

A version is written into a temporary sibling, every file is fsynced, the manifest is written last, the directory is
renamed to a name that never existed before, the parent is fsynced, and only then does the pointer move. A reader
follows pointer -> manifest -> verification, and falls back to the newest older version that verifies, saying so.
A process killed anywhere in between leaves the old version in place.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from recsys.errors import ArtifactError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
_MADE_BY = {
    "encoder": "fit",
    "day": "build",
    "checkpoint": "train",
    "report": "evaluate",
    "bundle": "export",
}
CURRENT = "CURRENT"
_DRAFT_PREFIX = ".draft-"
# What keeps a write from a place, by error number, and what a person does about it.
_REMEDIES = (
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there")
    | dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "allow writing there")
    | {errno.EIO: "check that disk"}
)
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Published:
    """A verified version on disk. `digest` is the SHA-256 that its manifest carries of itself; it covers every file."""

    path: Path
    kind: str
    metadata: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    digest: str

    @property
    def version(self) -> str:
        return self.path.name


@dataclass
class Draft:
    """A version being written. `published` is set once the commit has happened."""

    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    published: Published | None = None


@contextmanager
def publication(
    root: Path, *, kind: str, metadata: Mapping[str, Any] | None = None, pointer: str = CURRENT
) -> Iterator[Draft]:
    """A draft directory that becomes `root/<version>`, and `root/<pointer>`'s target, when the block ends well.

    An exception in the block removes the draft and leaves what was published before untouched.
    Raises ArtifactError when the root cannot be written, or not any more.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        fsync(root.parent)
        remove_abandoned(root, prefix=_DRAFT_PREFIX)
        path = root / f"{_DRAFT_PREFIX}{_new_version()}"
        path.mkdir()
    except OSError as error:
        raise ArtifactError(
            f"{root}: cannot be written ({error.strerror}); choose another place"
        ) from error
    draft = Draft(path, dict(metadata or {}))
    with writing(root):
        try:
            yield draft
            draft.published = _commit(draft, root, kind)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        point(root, draft.published.version, pointer=pointer)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise ArtifactError for what keeps a block from writing below a place: a full disk, a quota, a missing right."""
    try:
        yield
    except OSError as error:
        number, remedy = error.errno or 0, _REMEDIES.get(error.errno or 0)
        # A right may be missing elsewhere, to read what is written from.
        elsewhere = error.filename is not None and not str(error.filename).startswith(str(place))
        if remedy is None or elsewhere:
            raise
        raise ArtifactError(
            f"{place}: cannot be written ({os.strerror(number)}); {remedy}, then run the same command again "
            "(recsys train with --resume)"
        ) from error


def point(root: Path, version: str, *, pointer: str = CURRENT) -> None:
    """Move `root/<pointer>` to a version in one atomic step."""
    temporary = root / f".{pointer}-{secrets.token_hex(4)}"
    try:
        temporary.write_text(version + "\n", encoding="utf-8")
        fsync(temporary)
        os.replace(temporary, root / pointer)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(root)


def resolve(
    path: Path, *, kind: str, pointer: str = CURRENT, verify: Literal["sizes", "digests"] = "sizes"
) -> Published:
    """The version that `path` stands for: itself if it holds a manifest, else what its pointer names.

    When the version pointed at does not verify, the newest older one that does is returned and a warning logged.
    Raises ArtifactError when there is none, or when it is of another kind.
    """
    if (path / MANIFEST).is_file():
        return read_version(path, kind=kind, verify=verify)
    names = _candidates(path, kind, pointer)
    problems: list[str] = []
    for name in names:
        try:
            published = read_version(path / name, kind=kind, verify=verify)
        except ArtifactError as error:
            problems.append(str(error))
            continue
        if problems:
            logger.warning(
                "publish.fell_back kind=%s to=%s because=%s", kind, name, "; ".join(problems)
            )
        return published
    raise ArtifactError(problems[0])


def read_version(
    path: Path, *, kind: str, verify: Literal["manifest", "sizes", "digests"] = "sizes"
) -> Published:
    """One version directory, checked against its manifest. Raises ArtifactError naming the first file that differs.

    To verify the manifest alone looks at no other file.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        digest = manifest.pop("digest")
        found_kind, files = manifest["kind"], manifest["files"]
        format_version, metadata = manifest["format_version"], manifest["metadata"]
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path}: no {MANIFEST}, so this {kind} is unfinished or missing; publish it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST}: damaged ({error}); publish this {kind} again"
        ) from error
    if digest != hashlib.sha256(canonical_json(manifest)).hexdigest():
        raise ArtifactError(
            f"{path / MANIFEST}: damaged (its digest differs); publish this {kind} again"
        )
    if format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: manifest format {format_version}, this release reads {FORMAT_VERSION}"
        )
    if found_kind != kind:
        raise ArtifactError(
            f"{path}: holds a published {found_kind} in place of the {kind}; give the {kind}'s path"
        )
    if verify != "manifest":
        for name, entry in files.items():
            _verify_file(path, name, entry, verify)
    return Published(path, found_kind, metadata, files, digest)


def versions(root: Path) -> list[str]:
    """Names of the finished versions under a root, oldest first."""
    if not root.is_dir():
        return []
    return sorted(
        entry.name
        for entry in root.iterdir()
        if (entry / MANIFEST).is_file() and entry.name[0] != "."
    )


def prune(root: Path, *, keep: int, pointers: tuple[str, ...] = (CURRENT,)) -> None:
    """Remove all but the newest `keep` versions; what a pointer names always stays."""
    names = versions(root)
    pointed = {_pointed(root, pointer) for pointer in pointers}
    for name in names[: max(0, len(names) - keep)]:
        if name not in pointed:
            shutil.rmtree(root / name)


def remove_abandoned(root: Path, *, prefix: str) -> None:
    """Remove what processes that were killed left under a root; what is young may still be written by a neighbour."""
    for entry in root.glob(f"{prefix}*"):
        try:
            age_seconds = time.time() - entry.stat().st_mtime
        except FileNotFoundError:
            # The neighbour has published it meanwhile.
            continue
        if age_seconds > _ABANDONED_SECONDS:
            shutil.rmtree(entry, ignore_errors=True)


def fsync(path: Path) -> None:
    """Put one file or folder on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Put every file and folder below a directory, and itself, on disk."""
    for path in directory.rglob("*"):
        fsync(path)
    fsync(directory)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one serialisation that digests are taken of: sorted keys, no blanks, UTF-8, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _commit(draft: Draft, root: Path, kind: str) -> Published:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(draft.path.rglob("*")):
        if path.is_file():
            name = path.relative_to(draft.path).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        fsync(path)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "metadata": draft.metadata,
        "files": files,
    }
    digest = hashlib.sha256(canonical_json(manifest)).hexdigest()
    raw = json.dumps({**manifest, "digest": digest}, indent=2, sort_keys=True, allow_nan=False)
    (draft.path / MANIFEST).write_text(raw, encoding="utf-8")
    fsync(draft.path / MANIFEST)
    fsync(draft.path)
    final = root / draft.path.name.removeprefix(_DRAFT_PREFIX)
    assert not final.exists(), f"version {final} exists already"
    os.rename(draft.path, final)
    fsync(root)
    draft.path = final
    return Published(final, kind, draft.metadata, files, digest)


def _command(kind: str) -> str:
    return f" (recsys {_MADE_BY[kind]})" if kind in _MADE_BY else ""


def _candidates(root: Path, kind: str, pointer: str) -> list[str]:
    if not root.exists():
        raise ArtifactError(
            f"{root}: no such {kind}; check the path, or make it first{_command(kind)}"
        )
    older = versions(root)
    target = _pointed(root, pointer)
    if target is None:
        raise ArtifactError(
            f"{root}: holds no published {kind} (no {pointer} file); check the path, or make it first{_command(kind)}"
        )
    if "/" in target or target.startswith("."):
        raise ArtifactError(
            f"{root / pointer}: points to {target!r}, which is not a version name; publish again"
        )
    return [target, *reversed([name for name in older if name < target])]


def _pointed(root: Path, pointer: str) -> str | None:
    try:
        return (root / pointer).read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _verify_file(
    path: Path, name: str, entry: Mapping[str, Any], verify: Literal["sizes", "digests"]
) -> None:
    file = path / name
    if name.startswith("/") or ".." in Path(name).parts or file.is_symlink():
        raise ArtifactError(
            f"{path / MANIFEST}: names {name!r}, which lies outside; publish it again"
        )
    if not file.is_file():
        raise ArtifactError(f"{file}: missing, though the manifest lists it; publish it again")
    if file.stat().st_size != entry["bytes"]:
        raise ArtifactError(
            f"{file}: {file.stat().st_size} bytes, the manifest says {entry['bytes']}; "
            "the copy is damaged, publish it again"
        )
    if verify == "digests" and file_digest(file) != entry["sha256"]:
        raise ArtifactError(
            f"{file}: SHA-256 differs from the manifest; the copy is damaged, publish it again"
        )


def _new_version() -> str:
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    return f"{now}-{secrets.token_hex(2)}"
