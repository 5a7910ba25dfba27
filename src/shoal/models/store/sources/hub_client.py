"""Getting a model from the Hugging Face hub, into its own cache, which is shared with other programs.

Its client begins a file again when it was killed, so the large ones are put into its cache here, before it
looks for them there.

huggingface_hub reads ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN`` when it is imported.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE, MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - its client's: httpx's before 2.0, httpx2's since
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import are_symlinks_supported, http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers, filter_repo_objects
from huggingface_hub.utils import tqdm as hub_bar

from shoal.errors import UnknownModel
from shoal.models.checkpoint.manifest import MODULES, POOLING
from shoal.models.gguf.names import shard_names
from shoal.models.store.disk import check_free, told_if_full
from shoal.models.store.sources.download import Download, remove_partials
from shoal.progress import Progress
from shoal.types import SHA256

WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
"""Config, tokenizer and safetensors. Never a pickle, never code."""
UNWANTED = ("*/*", "consolidated*")
"""Other formats of the same weights."""
LARGER_DISK = "set HF_HOME to a larger disk"


def fetch_snapshot(repo: str, progress: Progress, close: Iterable[str] = ()) -> Path:
    """The folder of ``owner/name`` in the hub's cache, downloaded if it is not there.

    Raises:
        UnknownModel: the hub does not know it, does not let us have it, or cannot be reached.
        OutOfResources: the disk is full.
    """
    told = _Told(progress)
    with _explained(repo, close, told.total):
        _fetch_large(repo, WANTED, UNWANTED, told)
        folder = Path(
            snapshot_download(
                repo,
                allow_patterns=list(WANTED),
                ignore_patterns=list(UNWANTED),
                tqdm_class=_bar(told),
            )
        )
        if (folder / MODULES).is_file():  # a model for embeddings, which says in another folder how
            snapshot_download(repo, allow_patterns=[POOLING], tqdm_class=_bar(told))
        return folder


def gguf_models(repo: str) -> list[str]:
    """The models in the GGUF files of ``owner/name``, by their first files. Raises as ``fetch_snapshot``."""
    with _explained(repo, ()):
        files = HfApi().list_repo_files(repo)
    ggufs = [file for file in files if file.lower().endswith(".gguf")]
    firsts = {str(PurePosixPath(file).with_name(shard_names(PurePosixPath(file).name)[0])) for file in ggufs}
    # mmproj files hold what turns images into tokens, and no model of language.
    return sorted(file for file in firsts if "mmproj" not in file.lower())


def fetch_gguf_files(repo: str, file: str, progress: Progress) -> Path:
    """A GGUF file of ``owner/name`` in the hub's cache, with all files that the model is split into.

    Args:
        file: the first of them, by its path in the repository.

    Returns:
        Where the first is; others that the hub does not have are missing beside it.

    Raises:
        UnknownModel: the hub has no such file; else as ``fetch_snapshot``.
        OutOfResources: the disk is full.
    """
    path = PurePosixPath(file)
    wanted = [str(path.with_name(name)) for name in shard_names(path.name)]
    told = _Told(progress)
    patterns = [glob.escape(name) for name in wanted]
    with _explained(repo, (), told.total):
        _fetch_large(repo, patterns, (), told)
        folder = Path(snapshot_download(repo, allow_patterns=patterns, tqdm_class=_bar(told)))
    if not any((folder / name).is_file() for name in wanted):
        raise UnknownModel(
            f"{repo} on the hub has no file {file}",
            check="check the file's name; leave it out to list the repository's files",
            next_command=f"shoal models pull {repo}",
        )
    return folder / file


def fetch_config(repo: str, close: Iterable[str] = ()) -> Path:
    """A folder with the ``config.json`` of ``owner/name``, perhaps alone. Raises as ``fetch_snapshot``."""
    with _explained(repo, close):
        return Path(hf_hub_download(repo, "config.json")).parent


def _fetch_large(repo: str, wanted: Sequence[str], unwanted: Sequence[str], told: _Told) -> None:
    """Put a repository's large files into the hub's cache, where its client finds them by their hash.

    Without symbolic links the client would copy them, and over 50 GB it has a way of its own: then it
    downloads them itself, and begins again when it was killed.

    Raises:
        BadWeights: what came is not what the hub says.
        OutOfResources: there is too little room.
    """
    if not are_symlinks_supported(HF_HUB_CACHE):
        return
    try:
        info = HfApi().model_info(repo, files_metadata=True)
    except (HTTPError, OSError, ValueError, KeyError, TypeError):
        return  # snapshot_download is asked next: it says what is wrong, or has all that is needed
    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    stored = {file.rfilename: file.lfs for file in info.siblings or [] if file.lfs is not None}
    remove_partials(blobs, {lfs.sha256 for lfs in stored.values()})
    files = {
        name: Download(blobs / lfs.sha256, lfs.sha256, lfs.size)
        for name in filter_repo_objects(stored, allow_patterns=[*wanted], ignore_patterns=[*unwanted])
        if SHA256.fullmatch((lfs := stored[name]).sha256) and 0 < lfs.size <= MAX_HTTP_DOWNLOAD_SIZE
    }
    check_free(Path(HF_HUB_CACHE), repo, sum(file.missing() for file in files.values()), instead=LARGER_DISK)
    total, before = sum(file.size for file in files.values()), 0
    for name, file in files.items():
        url = hf_hub_url(repo, name, revision=info.sha)
        file.finish(partial(_append_rest, url, file.size, _bar(told.within(before, total))), told)
        before += file.size


def _append_rest(url: str, size: int, bar: type[Any], out: BinaryIO, begin: int) -> None:
    """Append what is missing behind the first ``begin`` bytes, connecting again where it breaks off."""
    http_get(url, out, resume_size=begin, headers=build_hf_headers(), expected_size=size, tqdm_class=bar)


class _Told:
    """Hands progress on, and knows how many bytes there are to come in all."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._total = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        self._total = max(self._total, total)
        self._progress(label, done, total)

    def within(self, before: int, total: int) -> Progress:
        """Hands on the progress of one of several files: ``before`` bytes of ``total`` came with others."""
        return lambda label, done, _: self("Downloading", before + done, total)

    def total(self) -> int:
        return self._total


@contextmanager
def _explained(repo: str, close: Iterable[str], needed: Callable[[], int] = lambda: 0) -> Generator[None]:
    """What the hub's client raises, as errors of ours. ``needed``: as :func:`told_if_full`'s."""
    hint = f"; close names here: {', '.join(close)}" if close else ""
    try:
        with told_if_full(Path(HF_HUB_CACHE), repo, needed, instead=LARGER_DISK):
            yield
    except GatedRepoError as error:
        raise UnknownModel(
            f"{repo} is gated on the hub, and this machine has no right to it",
            check="accept its terms on the hub, then set HF_TOKEN",
        ) from error
    except (RepositoryNotFoundError, HFValidationError, EntryNotFoundError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(repo, hint) from error
        raise UnknownModel(
            f"the hub knows no model {repo!r}{hint}",
            check="check the name; for a private repository set HF_TOKEN",
            next_command="shoal models list",
        ) from error
    except (OfflineModeIsEnabled, HTTPError, ValueError) as error:
        raise _unreachable(repo, hint) from error  # ValueError: what answers is no hub
    except OSError as error:
        raise _unreachable(repo, hint) from error


def _unreachable(repo: str, hint: str) -> UnknownModel:
    return UnknownModel(
        f"{repo} is not on this machine, and the hub cannot be reached{hint}",
        check="check the network and HF_ENDPOINT, and that HF_HUB_OFFLINE is not set",
        next_command="shoal models list",
    )


def _bar(progress: Progress) -> type[Any]:
    class Bar(hub_bar):  # what snapshot_download draws with
        """Tells ``progress`` instead of drawing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._quiet = open(os.devnull, "w")  # noqa: SIM115, PTH123 - closed in close()
            super().__init__(*args, **(kwargs | {"file": self._quiet, "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B":
                progress(str(self.desc or "Downloading"), int(self.n), int(self.total or 0))
            return shown

        def close(self) -> None:
            super().close()
            self._quiet.close()

    return Bar
