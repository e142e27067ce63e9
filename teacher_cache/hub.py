"""Uploads to the Hugging Face Hub: a repository gets whole commits, and the last one makes the new content complete.

Files are sent before the commit that names them, and not again after an interruption. Tokens are those of
``huggingface_hub``: ``HF_TOKEN``, or that of ``hf auth login``.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from schemas.errors import AccessError, ConflictError, CorruptCacheError, StoreError, UserError
from schemas.failures import failure, reason

FILES_PER_COMMIT = 500
HUB = "hf://"
Content = Path | bytes
if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


class Repository(NamedTuple):
    """A folder of a repository."""

    url: str
    kind: Literal["dataset", "model"]
    name: str  # OWNER/NAME
    revision: str | None
    folder: str  # "" or ending in "/"


class Remote(NamedTuple):
    """A file of a repository."""

    size: int
    blob: str  # git's id of it, or of the pointer to it
    sha256: str | None  # of a large file

    def has(self, size: int, sha256: str, content: Content) -> bool:
        """Whether it has this content; small files are read."""
        if self.size != size or self.sha256 is not None:
            return self.size == size and self.sha256 == sha256
        if isinstance(content, Path) and not content.is_file():
            return False
        data = content if isinstance(content, bytes) else content.read_bytes()
        return self.blob == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def repository_of(url: str, kind: Literal["dataset", "model"]) -> Repository:
    """The repository of a URL ``hf://[datasets/]OWNER/NAME[@REVISION][/FOLDER]``; in a REVISION, / is written %2F.

    Raises UserError.
    """
    from huggingface_hub import parse_hf_uri

    wanted = "hf://datasets/OWNER/NAME" if kind == "dataset" else "hf://OWNER/NAME"
    refused = UserError(f"{url}: not a {kind} repository of the Hub; write {wanted}[@REVISION][/FOLDER]")
    try:
        found = parse_hf_uri(url)
    except ValueError:
        raise refused from None
    folder = found.path_in_repo
    if not url.startswith(HUB) or found.type != kind or not {".", ".."}.isdisjoint(folder.split("/")):
        raise refused
    return Repository(url, kind, found.id, found.revision, f"{folder}/" if folder else "")


class HubUpload:
    """Changes of one repository."""

    def __init__(self, repository: Repository) -> None:
        from huggingface_hub import HfApi

        self._repository, self._api = repository, HfApi()
        self._head: str | None = None  # the commit that the next one is to follow

    def create(self, private: bool) -> None:
        """Create the repository if it does not exist, ``private`` or for everyone to read. Raises UserError."""
        with self._errors():
            self._api.create_repo(
                self._repository.name, repo_type=self._repository.kind, private=private, exist_ok=True
            )

    def present(self) -> dict[str, Remote]:
        """The files of the folder, by name in it; none if there is no repository. Raises UserError."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        where = self._repository
        with self._errors():
            try:
                self._head = self._api.repo_info(where.name, **self._of_repository).sha
                found = list(
                    self._api.list_repo_tree(
                        where.name, where.folder.rstrip("/") or None, recursive=True, **self._of_repository
                    )
                )
            except (EntryNotFoundError, RepositoryNotFoundError):
                return {}
        return {
            each.path.removeprefix(where.folder): Remote(
                each.size, each.blob_id, None if each.lfs is None else each.lfs.sha256
            )
            for each in found
            if isinstance(each, RepoFile)
        }

    def file(self, name: str, path: Path, sha256: str | None = None) -> "CommitOperationAdd":
        """The file for ``commit``. Raises CorruptCacheError if it is missing, or has not the digest."""
        from huggingface_hub import CommitOperationAdd

        try:
            added = CommitOperationAdd(self._repository.folder + name, path)
        except (ValueError, OSError):
            raise CorruptCacheError(f"{path}: cannot be read; restore it from a copy") from None
        if sha256 is not None and added.upload_info.sha256.hex() != sha256:
            raise CorruptCacheError(f"{path}: differs from the manifest; restore it from a copy")
        return added

    def commit(
        self,
        files: Sequence["CommitOperationAdd"],
        last: Mapping[str, Content],
        removed: Sequence[str],
        message: str,
        present: Mapping[str, Remote],
    ) -> str:
        """Upload ``files``, then ``last``, and remove what is ``removed``; returns the last commit's id.

        More than some hundreds of files take several commits; the first of them takes those of ``last`` that are there
        already away, so that nobody reads what is not complete. Raises UserError.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def deleted(names: Sequence[str]) -> list[Any]:
            return [CommitOperationDelete(self._repository.folder + name) for name in names]

        hidden = [name for name in last if name in present]
        while len(files) > FILES_PER_COMMIT:
            part, files = files[:FILES_PER_COMMIT], files[FILES_PER_COMMIT:]
            self._commit([*deleted(hidden), *part], f"{message}: a part, not complete yet")
            hidden = []
        completing = [CommitOperationAdd(self._repository.folder + name, content) for name, content in last.items()]
        return self._commit([*files, *completing, *deleted(removed)], message)

    def _commit(self, operations: list[Any], message: str) -> str:
        name, of_repository = self._repository.name, self._of_repository
        with self._errors():
            parent = self._head or self._api.repo_info(name, **of_repository).sha
            made = self._api.create_commit(
                name, operations, commit_message=message, parent_commit=parent, **of_repository
            )
        self._head = str(made.oid)
        return self._head

    @property
    def _of_repository(self) -> dict[str, Any]:
        return {"repo_type": self._repository.kind, "revision": self._repository.revision}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RevisionNotFoundError

        url = self._repository.url
        try:
            yield
        except LocalTokenNotFoundError:
            raise AccessError(f"{url}: no token for the Hub; set HF_TOKEN, or run `hf auth login`") from None
        except RevisionNotFoundError:
            revision = self._repository.revision
            raise UserError(f"{url}: the repository has no revision {revision}; create it, or leave it out") from None
        except HfHubHTTPError as error:
            status = error.response.status_code
            said = " ".join(reason(error).split())[:300]
            if status in (401, 403):
                raise AccessError(
                    f"{url}: the Hub refuses it ({status}): check HF_TOKEN and its permissions: {said}"
                ) from None
            if status in (409, 412):
                raise ConflictError(f"{url}: another process has changed it meanwhile: run again: {said}") from None
            raise StoreError(f"{url}: the Hub does not take it ({status}): {said}") from None
        except Exception as error:  # of the client's own network library, which has others in other versions
            raise failure(error, f"{url}: cannot be uploaded") from None
