"""Files and folders that are taken for a model's: what they are, and what to do."""

from __future__ import annotations

from pathlib import Path

POINTER = b"version https://git-lfs"
LFS = (
    "it is a Git LFS pointer, the note that stands for the file in a clone without LFS: "
    "run `git lfs pull` in that folder, or pull the model by its hub id"
)
PAGE = (b"<!doctype html", b"<html")
OLD = (b"ggml", b"tjgg", b"lmgg", b"fmgg")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
PICKLED = "it is a pickle, or an archive of them, and never loaded: take the model as safetensors or GGUF"


def what_it_is(file: Path) -> str:
    """What to check about a file that does not begin as a file of weights does; empty if that is not known.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        begin = stream.read(64)
    kinds = (
        (begin.startswith(POINTER), LFS),
        (
            begin.lstrip().lower().startswith(PAGE),
            "it is a web page: the link led to a page, not to the file",
        ),
        (begin.startswith(b"GGUF"), "it is a GGUF file: name it .gguf and pull it by its path"),
        (begin.startswith(OLD), "it is of a format of llama.cpp before GGUF: fetch the model again as GGUF"),
        (begin.startswith(PICKLES), PICKLED),
        (
            begin != b"" and not begin.strip(b"\0"),
            "it begins with zeros: a download that was cut off; fetch it again",
        ),
    )
    return next((what for found, what in kinds if found), "")
