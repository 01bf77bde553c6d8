"""Checkpoints by name, from a server of this machine."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from small_models import NARROW, small_model

from wnlb.export.checkpoints.files import download, fetched
from wnlb.export.checkpoints.files.fetched import SAMPLE, cache_folder, fetched_checkpoint, published_url
from wnlb.export.onnx_file import export_onnx
from wnlb.runtime.cli import main
from wnlb.runtime.errors import CheckpointError, VerificationError, WnlbError

BODY = bytes(range(256)) * 4000  # several blocks
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Answer:
    body: bytes = BODY
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    """Answers what is planted, 404 to all else, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, http.client.HTTPMessage]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers))
        answer = self.server.answers.get(self.path, Answer(b"", 404))
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def start() -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []

    def started() -> Server:
        servers.append(Server())
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(start: Callable[[], Server]) -> Server:
    return start()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("WNLB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def refused(text: str, sha256: str | None = None) -> str:
    """The one line that comes instead of a checkpoint."""
    with pytest.raises(CheckpointError) as raised:
        fetched_checkpoint(text, sha256)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_is_downloaded_once_and_kept(server: Server, cache: Path) -> None:
    url = server.url("/weights/night%20model.pth?download=true")
    server.answers["/weights/night%20model.pth?download=true"] = Answer()
    first = fetched_checkpoint(f"{url}#fragment", SHA256)
    assert first.path == cache / hashlib.sha256(url.encode()).hexdigest()[:16] / "night model.pth"
    assert first.path.read_bytes() == BODY
    assert first.sha256 == SHA256
    assert (first.told, first.overrides) == (f"checkpoint: downloaded to {first.path}, sha256 {SHA256}", {})
    again = fetched_checkpoint(url)
    assert (again.path, again.sha256) == (first.path, SHA256)
    assert again.told == f"checkpoint: cached {first.path}, sha256 {SHA256}"
    assert len(server.asked) == 1
    assert files_in(cache) == [first.path]
    assert "delete it" in refused(url, "0" * 64)  # what lay there before is not ours to remove
    assert first.path.is_file()


def test_two_at_once_leave_one_whole_file(server: Server, cache: Path) -> None:
    server.answers["/c.pth"] = Answer()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetched_checkpoint(server.url("/c.pth")).sha256)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SHA256] * 4
    assert [path.read_bytes() for path in files_in(cache)] == [BODY]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(b"", 404), "HTTP 404 Not Found"),
        (Answer(b"", 403), "HTTP 403 Forbidden, it wants a login"),
        (Answer(BODY[:-1], headers={"Content-Length": str(len(BODY))}), "broke off"),
        (Answer(b"5\r\nabcde\r\n", headers={"Transfer-Encoding": "chunked"}), "broke off"),
        (Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), "it is a web page"),
        (Answer(b"", 302, {"Location": "file:///etc/passwd"}), "HTTP 302"),
        (Answer(b"", 302, {"Location": "http://example.org/c.pth"}), "example.org/c.pth is plain http"),
        (Answer(b"", 302, {"Location": "/c.pth"}), "HTTP 302"),  # for ever
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(server: Server, cache: Path, answer: Answer, said: str) -> None:
    server.answers["/c.pth"] = answer
    if "Transfer-Encoding" in answer.headers:
        answer.headers["Connection"] = "close"
    line = refused(server.url("/c.pth"))
    assert said in line
    if "plain http" not in said:
        folder = re.search(r"curl -L -o c\.pth \S+/c\.pth, put into (\S+)$", line)
        assert folder
        assert files_in(cache) == []
        (Path(folder[1]) / "c.pth").write_bytes(BODY)
        assert fetched_checkpoint(server.url("/c.pth")).sha256 == SHA256


def test_no_network_and_no_answer(start: Callable[[], Server], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/c.pth"] = Answer(b"", headers={"Content-Length": "9"})
    url = server.url("/c.pth")
    monkeypatch.setattr(download, "_TIMEOUT", 0.05)
    monkeypatch.setattr(Handler, "end_headers", lambda self: threading.Event().wait(0.3))
    assert f"{url} cannot be downloaded: timed out; by hand, where" in refused(url)
    gone = start()
    gone.shutdown()
    gone.server_close()
    assert "Connection refused; by hand" in refused(gone.url("/c.pth"))


def test_a_full_disk_is_told_as_such(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/c.pth"] = Answer()

    def opened(*_: object) -> IO[bytes]:
        return Path("/dev/full").open("wb")

    monkeypatch.setattr(download, "open", opened, raising=False)
    with pytest.raises(WnlbError, match=r"c\.pth cannot be written: No space left on device") as raised:
        fetched_checkpoint(server.url("/c.pth"))
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert files_in(cache) == []


def test_another_hash_is_refused_and_not_kept(server: Server, cache: Path, tmp_path: Path) -> None:
    server.answers["/c.pth"] = Answer()
    line = refused(server.url("/c.pth"), "0" * 64)
    assert f"has the SHA-256 {SHA256}, but --sha256 asks for {'0' * 64}" in line
    assert files_in(cache) == []
    local = tmp_path / "local.pth"
    local.write_bytes(BODY)
    assert f"{local} has the SHA-256 {SHA256}" in refused(str(local), "0" * 64)
    held = fetched_checkpoint(str(local), SHA256)
    assert (held.path, held.sha256) == (local, SHA256)
    assert held.told == f"checkpoint: {local}, sha256 {SHA256}"


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://example.org/c.pth", "is plain http"),
        ("http://localhost.example.org/c.pth", "is plain http"),
        ("s3://bucket/c.pth", "is of s3; expected https://"),
        ("file:///tmp/c.pth", "is of file; expected https://"),
        ("https://example.org", "does not end in the name of a file"),
        ("https://example.org/a/", "does not end in the name of a file"),
        ("https://example.org/a/%2e%2e", "does not end in the name of a file"),
        ("https://example.org/model.safetensors.index.json", "the index of several files"),
        ("https://example.org:port/c.pth", "is not valid"),
        ("https:///c.pth", "expected https://HOST/PATH"),
        ("hf://owner/repo", "is not complete"),
        ("hf://owner/repo@main/", "is not complete"),
    ],
)
def test_addresses_that_are_refused_unasked(address: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "download", None)
    assert said in refused(address)


def test_plain_http_with_a_hash_and_what_messages_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert download.checked_address("http://example.org/a b?c=d e#f", True) == "http://example.org/a%20b?c=d%20e"
    assert "secret" not in refused("https://user:secret@example.org/c.pth")
    assert download.shown("https://example.org/c.pth?signature=secret") == "https://example.org/c.pth?..."


def test_from_https_nothing_leads_to_http() -> None:
    handler = download._Redirects(hashed=True)
    request = download.urllib.request.Request("https://example.org/c.pth")
    with pytest.raises(download._Failure, match=r"redirects from https to http://127\.0\.0\.1/c\.pth"):
        handler.redirect_request(request, None, 302, "", {}, "http://127.0.0.1/c.pth")
    followed = handler.redirect_request(request, None, 302, "", {}, "https://example.com/c.pth")
    assert followed.full_url == "https://example.com/c.pth"


def test_hugging_face_and_where_its_token_goes(
    start: Callable[[], Server], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start()
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url('')}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    moved = "/new/repo/resolve/refs%2Fpr%2F1/deep/night%20model.pth"
    server.answers["/owner/repo/resolve/refs%2Fpr%2F1/deep/night%20model.pth"] = Answer(b"", 307, {"Location": moved})
    server.answers[moved] = Answer(b"", 302, {"Location": other.url("/blob?signed", "localhost")})
    other.answers["/blob?signed"] = Answer()
    found = fetched_checkpoint("hf://owner/repo@refs%2Fpr%2F1/deep/night model.pth")
    assert (found.sha256, found.path.name) == (SHA256, "night model.pth")
    assert [headers["Authorization"] for _, headers in server.asked] == ["Bearer hf_secret"] * 2
    assert [headers["Authorization"] for _, headers in other.asked] == [None]
    server.answers["/owner/repo/resolve/main/c.pth"] = Answer()
    fetched_checkpoint("hf://owner/repo/c.pth")
    assert server.asked[-1][0] == "/owner/repo/resolve/main/c.pth"
    other.answers["/c.pth"] = Answer()
    fetched_checkpoint(other.url("/c.pth"))
    assert other.asked[-1][1]["Authorization"] is None


def test_hints_at_the_token(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    server.answers["/owner/repo/resolve/main/c.pth"] = Answer(b"", 401)
    assert "HTTP 401 Unauthorized, there is no such file, or it is not public: set HF_TOKEN" in refused(
        "hf://owner/repo/c.pth"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "HF_TOKEN may not read it" in refused("hf://owner/repo/c.pth")
    monkeypatch.setenv("HF_TOKEN", "hf_secret\nX-Header: a")
    line = refused("hf://owner/repo/c.pth")
    assert "HF_TOKEN is not a token" in line
    assert "secret" not in line


def test_the_token_is_not_sent_where_it_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert download._token("https://huggingface.co/owner/repo/resolve/main/c.pth") == "hf_secret"
    for other in ("https://huggingface.co.example.org/c", "http://huggingface.co/c", "https://huggingface.co:444/c"):
        assert download._token(other) == ""
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example.org")
    assert download._token("http://mirror.example.org/owner/repo/resolve/main/c.pth") == ""


def test_where_downloads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder().parts[-2:] == ("cache", "checkpoints")
    monkeypatch.delenv("WNLB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/wnlb/checkpoints")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/wnlb/checkpoints")


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in fetched.PUBLISHED:
        assert re.fullmatch(r"https://download\.pytorch\.org/models/\w+-[0-9a-f]{8}\.pth", published_url(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    sample = fetched_checkpoint("sample")
    assert sample.path == SAMPLE
    assert "synthetic night scenes only" in sample.told
    (tmp_path / "coco").write_bytes(BODY)
    assert fetched_checkpoint("coco").path == Path("coco")
    line = refused("cocov2")
    assert "checkpoint cocov2 does not exist" in line
    assert "one of the names sample, coco, coco-v2; near to coco-v2" in line
    assert "near" not in refused("no/such/file.pth")


@pytest.fixture
def coco(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Plants a small stand-in for torchvision's weights, under a name that ends in digits."""

    def plant(digits: str = "") -> Path:
        path = tmp_path / "coco.pth"
        torch.save(small_model(norm="frozen", num_classes=91, class_names=(), **NARROW).state_dict(), path)
        name = f"/maskrcnn_coco-{digits or hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
        server.answers[name] = Answer(path.read_bytes())
        monkeypatch.setattr(fetched, "published_url", lambda _: server.url(name))
        return path

    return plant


def test_published_weights_are_exported_as_they_were_trained(
    coco: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their eps and names, from the command; what comes after the reading is tested elsewhere."""
    sha256 = hashlib.sha256(coco().read_bytes()).hexdigest()
    exported: dict[str, Any] = {}

    def export(model: torch.nn.Module, *_: object, on_plan: Callable[[list[object]], None], **settings: object) -> None:
        on_plan([])
        exported.update(settings, eps=model.backbone.body.bn1.eps)
        raise VerificationError("enough")

    monkeypatch.setattr(export_onnx, "export_onnx", export)
    words = ["export", "coco", "-o", str(tmp_path / "m.onnx"), "--size", "64x64", "--sha256", sha256.upper()]
    assert main(words) == 1
    assert (exported["eps"], exported["checkpoint_sha256"]) == (0.0, sha256)
    assert exported["class_names"][-1] == "toothbrush"
    said = capsys.readouterr().out
    assert "hint" not in said
    assert "checkpoint: downloaded to " in said
    assert f", sha256 {sha256}\n" in said
    assert main([*words, "--set", "norm_eps=1e-5"]) == 1
    assert exported["eps"] == 1e-5
    assert "checkpoint: cached " in capsys.readouterr().out


def test_published_weights_carry_their_hash(coco: Callable[[str], Path], cache: Path) -> None:
    coco("00000000")
    assert "but its published name asks for 00000000" in refused("coco")
    assert files_in(cache) == []


def test_the_command_refuses_other_hashes(
    small_checkpoint_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(small_checkpoint_path), "-o", str(tmp_path / "m.onnx"), "--size", "64x64", "--sha256"]
    assert main([*words, "0" * 64]) == 2
    told = capsys.readouterr().err
    assert "but --sha256 asks for 0000" in told
    assert told.count("\n") == 1
    for bad in ("bf2d0c1e", "g" * 64, "0" * 65, f"sha256:{'0' * 64}"):
        with pytest.raises(SystemExit, match="2"):
            main([*words, bad])
        assert "argument --sha256: expected 64 hexadecimal digits, got" in capsys.readouterr().err
