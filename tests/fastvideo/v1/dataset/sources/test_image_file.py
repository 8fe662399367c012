"""Images are seen as a person sees them, and bad ones are told apart."""

import io
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import diffusers.utils
import fsspec
import numpy as np
import pytest
from PIL import Image

from fastvideo.v1.dataset.sources.image_file import BadImage, check_image, decode_image, read_image


def picture(height: int = 24, width: int = 40, channels: int = 3) -> Image.Image:
    """Blobs, so that a lossy file keeps them."""
    small = np.random.default_rng().integers(0, 256, (height // 8, width // 8, channels), np.uint8)
    return Image.fromarray(small.repeat(8, 0).repeat(8, 1))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "channels"), [("PNG", 3), ("PNG", 4), ("JPEG", 3), ("WEBP", 3), ("GIF", 3)])
@pytest.mark.parametrize("orientation", [None, 6, 3])
def test_decodes_as_diffusers_does(tmp_path, kind, channels, orientation) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    options = {"exif": exif} if kind != "GIF" else {}
    (tmp_path / "x").write_bytes(data := encoded(picture(channels=channels), kind, **options))
    check_image(data)
    expected = np.array(diffusers.utils.load_image(str(tmp_path / "x")))
    assert np.array_equal(decode_image(data), expected)
    turned = orientation == 6 and kind != "GIF"
    assert expected.shape == ((40, 24, 3) if turned else (24, 40, 3))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_file_cut_short_is_bad(kind) -> None:
    data = encoded(picture(), kind)
    for size in (0, 10, len(data) // 2):
        with pytest.raises(BadImage, match=f"cannot be decoded \\({size} bytes\\)"):
            check_image(data[:size])


def test_bytes_of_another_kind_are_bad() -> None:
    with pytest.raises(BadImage, match="no image of a kind we read"):
        check_image(b"%PDF-1.7 and more")


def test_a_file_is_read_from_a_path_or_a_uri(tmp_path) -> None:
    data = encoded(picture(), "PNG")
    (tmp_path / "x.png").write_bytes(data)
    fsspec.filesystem("memory").pipe_file("/pictures/x.png", data)
    for source in (str(tmp_path / "x.png"), f"file://{tmp_path}/x.png", "memory://pictures/x.png"):
        assert read_image(source) == data


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{}/gone.png", "gone.png' does not exist"),
        ("memory://gone/x.png", "does not exist"),
        ("{}", "cannot be read"),
        ("{}/" + 300 * "x", "cannot be read: File name too long"),
        ("nothing://x", "cannot be read: .*nothing"),
        ("https://me:secret@host/x.png", "credentials"),
        ("http://[0:1/x.png", "cannot be read: Invalid IPv6 URL"),
        ("http://127.0.0.1:1/x.png", "cannot be read: Cannot connect to host 127.0.0.1:1"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, source, message) -> None:
    with pytest.raises(BadImage, match=message) as caught:
        read_image(source.format(tmp_path))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


class Answer(BaseHTTPRequestHandler):
    """Answers ``/<status>/...`` with that status, and an image if it is 200."""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        data = encoded(picture(), "PNG") if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_web_server_is_quoted_when_it_gives_no_image(web) -> None:
    assert decode_image(read_image(f"{web}/200/x.png")).shape == (24, 40, 3)
    for status in (403, 404, 429, 500):
        with pytest.raises(BadImage, match=f"cannot be read: the server answers {status}$"):
            read_image(f"{web}/{status}/x.png")


def test_a_bucket_without_credentials_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()
    with pytest.raises(BadImage, match="no credentials found"):
        read_image("s3://bucket/x.png")
    s3.clear_instance_cache()
