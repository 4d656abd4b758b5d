"""Data sets by name: what comes is what the hash says, once, and a broken transfer goes on where it stopped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from squidiff.cli.app import main
from squidiff.config import InputError
from squidiff.data import downloads
from squidiff.data.check import check
from squidiff.data.downloads import DATASETS, Download, Generated, get_dataset

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `cut` bytes after which a transfer breaks, `ranges` whether parts can be asked for."""

    cut: int | None = None
    ranges = True
    status = 200
    requests: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine whose file is the data set `local`."""
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/local.h5ad"
        known = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
        monkeypatch.setitem(downloads.DATASETS, "local", Download("made here", "this test", url, known, 3.0))
        yield running
        running.shutdown()


def test_a_file_is_downloaded_once_and_another_in_its_place_is_kept(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = get_dataset("local", tmp_path, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert get_dataset("local", tmp_path) == path
    assert server.requests == [None]
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"local.h5ad is there already and not the data set local: move it away"):
        get_dataset("local", tmp_path)
    assert path.read_bytes() == b"mine"
    assert server.requests == [None]


def test_another_file_in_the_place_of_a_generated_set_is_kept_and_not_handed_out(tmp_path: Path) -> None:
    path = get_dataset("simulated-100", tmp_path)
    made = path.read_bytes()
    assert get_dataset("simulated-100", tmp_path) == path
    assert path.read_bytes() == made
    cells = ad.read_h5ad(path)
    cells.X.data[7] += 1
    cells.write_h5ad(tmp_path / "edited.h5ad")
    relabelled = ad.read_h5ad(path)
    relabelled.obs["condition"] = relabelled.obs["condition"].astype(str).iloc[::-1].to_numpy()
    relabelled.write_h5ad(tmp_path / "relabelled.h5ad")
    for other in (b"mine", made[:-1000], *((tmp_path / f"{n}.h5ad").read_bytes() for n in ("edited", "relabelled"))):
        path.write_bytes(other)
        with pytest.raises(InputError, match=r"simulated-100.h5ad is there already and not the data set simulated-100"):
            get_dataset("simulated-100", tmp_path)
        assert path.read_bytes() == other


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, ranges: bool, tmp_path: Path) -> None:
    server.cut, server.ranges = 2_000_000, ranges
    with pytest.raises(InputError, match=r"\(the connection broke\); [12]\.\d MB are kept: when there is a connection"):
        get_dataset("local", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["local.part"]
    kept = (tmp_path / "local.part").stat().st_size
    server.cut = None
    assert get_dataset("local", tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, f"bytes={kept}-"]
    assert [p.name for p in tmp_path.iterdir()] == ["local.h5ad"]


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "local.part").write_bytes(CONTENT + b"more")
    assert get_dataset("local", tmp_path).read_bytes() == CONTENT


def test_what_is_not_what_the_hash_says_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "local.part").write_bytes(b"another file")
    with pytest.raises(InputError, match="is not the file that it should be"):
        get_dataset("local", tmp_path)
    assert not list(tmp_path.iterdir())
    assert get_dataset("local", tmp_path).read_bytes() == CONTENT


def test_a_server_that_says_no_and_one_that_is_not_there_are_a_sentence(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(InputError, match="cannot be had: the server answers 404"):
        get_dataset("local", tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match="there is no connection to the server"):
        get_dataset("local", tmp_path)
    with pytest.raises(InputError, match="there is no data set 'nowhere': the names are simulated"):
        get_dataset("nowhere", tmp_path)


@pytest.mark.parametrize("name", [name for name, found in DATASETS.items() if isinstance(found, Generated)])
def test_what_is_generated_needs_no_server_and_is_in_order(name: str, tmp_path: Path) -> None:
    path = get_dataset(name, tmp_path)
    assert check(path, normalize=name != "pbmc68k").errors == ()
    assert get_dataset(name, tmp_path) == path


def test_every_download_states_its_hash_and_its_source() -> None:
    for found in DATASETS.values():
        if isinstance(found, Download):
            kind, _, value = found.known_hash.partition(":")
            assert len(value) == {"sha256": 64, "md5": 32}[kind]
            assert found.url.startswith("https://")
            assert "GSE" in found.source


def test_the_command_copies_what_it_got(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SQUIDIFF_DATA", str(tmp_path / "cache"))
    for tokens in (["get", "local", "--out", str(tmp_path / "mine.h5ad")], ["get", "simulated"], ["list"]):
        with pytest.raises(SystemExit) as stop:
            main(["datasets", *tokens])
        assert not stop.value.code
    assert (tmp_path / "mine.h5ad").read_bytes() == CONTENT
    (tmp_path / "mine.h5ad").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["datasets", "get", "local", "--out", str(tmp_path / "mine.h5ad")])
    assert stop.value.code == 2
    assert (tmp_path / "mine.h5ad").read_text() == "mine"
    assert ad.read_h5ad(tmp_path / "cache" / "simulated.h5ad").n_vars == 300
    shown = capsys.readouterr().out
    assert all(name in shown for name in DATASETS)
