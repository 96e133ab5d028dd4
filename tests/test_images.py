"""One way to read an image: of any kind, turned, deep, transparent or damaged, and the same for all who read it."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from jaxlocal.data import UnreadableError
from jaxlocal.data.images import FORMATS, look, middle_box, read, suffixes

H, W = 6, 9
GREY = np.arange(H * W, dtype=np.uint8).reshape(H, W) * 4
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def whole(source, channels=3, shape=(H, W)):
    return read(source, lambda width, height: (0, 0, width, height), (*shape, channels))


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(COLOUR), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, COLOUR),
        (2, COLOUR[:, ::-1]),
        (3, COLOUR[::-1, ::-1]),
        (4, COLOUR[::-1]),
        (5, COLOUR.swapaxes(0, 1)),
        (6, np.rot90(COLOUR, -1)),
        (7, COLOUR[::-1, ::-1].swapaxes(0, 1)),
        (8, np.rot90(COLOUR)),
        (9, COLOUR),
    ],
)
def test_an_image_stands_as_its_camera_was_held(orientation, expected, kind):
    source = turned(orientation, kind)
    seen = whole(source, shape=expected.shape[:2])
    if kind == "WEBP":  # which loses some
        assert np.abs(seen.astype(int) - expected).mean() < np.abs(seen[::-1].astype(int) - expected).mean() / 2
    else:
        np.testing.assert_array_equal(seen, expected)
    assert look(source) == (expected.shape[:2], False)


DEEP = np.array([[0, 257, 65535], [128 * 257, 300, 2570]], np.uint16)
BYTES = np.round(DEEP / 257).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (DEEP, "PNG", BYTES),
        (DEEP, "TIFF", BYTES),
        (DEEP.astype(np.int32), "TIFF", BYTES),
        ((DEEP / 65535).astype(np.float32), "TIFF", BYTES),
        ((DEEP / 65534).astype(np.float32), "TIFF", BYTES),
        (BYTES.astype(np.float32), "TIFF", BYTES),
    ],
    ids=["16 bit PNG", "16 bit TIFF", "32 bit TIFF", "floats to 1", "floats to a little more", "floats to 255"],
)
def test_deep_images_are_scaled(values, kind, expected):
    source = saved(Image.fromarray(values), kind)
    np.testing.assert_array_equal(whole(source, 1, expected.shape)[..., 0], expected)
    np.testing.assert_array_equal(whole(source, 3, expected.shape), np.repeat(expected[..., None], 3, axis=-1))
    assert look(source)[1]


def test_one_bit_is_black_and_white():
    bits = GREY > 100
    np.testing.assert_array_equal(whole(saved(Image.fromarray(bits)), 1)[..., 0], bits * 255)


def test_what_is_transparent_is_seen_on_white():
    alpha = np.where(GREY > 100, 255, 0).astype(np.uint8)
    expected = np.where(alpha[..., None] > 0, COLOUR, 255)
    rgba = Image.fromarray(np.dstack([COLOUR, alpha]))
    np.testing.assert_array_equal(whole(saved(rgba)), expected)
    la = Image.fromarray(np.dstack([GREY, alpha]))
    np.testing.assert_array_equal(whole(saved(la), 1)[..., 0], np.where(alpha > 0, GREY, 255))
    palette = Image.fromarray(GREY // 100, "L").convert("P")
    palette.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    seen = whole(saved(palette, transparency=0))
    np.testing.assert_array_equal(np.unique(seen.reshape(-1, 3), axis=0), [[10, 20, 30], [200, 100, 50], [255] * 3])


def test_palettes_and_print_colours():
    palette = Image.fromarray(COLOUR).quantize(16)
    np.testing.assert_array_equal(whole(saved(palette)), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(COLOUR).convert("CMYK")
    assert np.abs(whole(saved(cmyk, "JPEG", quality=100)).astype(int) - COLOUR).max() < 30


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.fromarray(np.full((H, W), value, np.uint8)) for value in (10, 200)]
    assert (whole(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1) == 10).all()


def test_the_part_is_scaled_and_all_of_it_is_left_alone():
    source = saved(Image.fromarray(COLOUR))
    box = middle_box((3, 3, 3), W, H)
    assert box == (1.5, 0, 7.5, 6)
    expected = Image.fromarray(COLOUR).resize((3, 3), Image.Resampling.BILINEAR, box)
    np.testing.assert_array_equal(read(source, lambda w, h: middle_box((3, 3, 3), w, h), (3, 3, 3)), expected)
    np.testing.assert_array_equal(whole(source), COLOUR)


def test_no_middle_is_outside_of_its_image():
    for side, (width, height) in itertools.product(
        (28, 64, 224, 240, 299), itertools.product(range(1, 1200, 7), (900, 1200))
    ):
        for w, h in ((width, height), (height, width)):
            left, upper, right, lower = middle_box((side, side, 3), w, h)
            assert 0 <= left < right <= w
            assert 0 <= upper < lower <= h


def test_a_path_reads_as_its_bytes_do(tmp_path):
    path = tmp_path / "a b[1]\\.png"
    path.write_bytes(saved(Image.fromarray(COLOUR)))
    np.testing.assert_array_equal(whole(path), COLOUR)
    np.testing.assert_array_equal(whole(str(path)), COLOUR)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "no image of the kinds"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of the kinds"),  # would start a program
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of the kinds"),
        (saved(Image.fromarray(COLOUR))[:50], "."),
        (saved(Image.fromarray(COLOUR), "JPEG")[:300], "."),
        (saved(Image.fromarray(np.array([[np.nan]], np.float32)), "TIFF"), "no numbers"),
        (saved(Image.fromarray(np.array([[-1.0]], np.float32)), "TIFF"), "below 0"),
        (saved(Image.fromarray(np.array([[256.0]], np.float32)), "TIFF"), "more than 255"),
        (saved(Image.fromarray(np.array([[1.5]], np.float32)), "TIFF"), "parts of 1 or of 255"),
        (saved(Image.fromarray(np.array([[70000]], np.int32)), "TIFF"), "more than 65535"),
        ("/nonexistent/a.png", "No such file"),
        ("/", "Is a directory"),
    ],
)
def test_what_cannot_be_read_is_one_line(source, reason):
    with pytest.raises(UnreadableError, match=reason) as raised:
        whole(source)
    assert "\n" not in str(raised.value)
    assert "object at 0x" not in str(raised.value)


@pytest.mark.parametrize("factor", [1.5, 3])
def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(H * W / factor))
    with pytest.raises(UnreadableError, match=r"more than .* pixels"):
        whole(saved(Image.fromarray(COLOUR)))
    with pytest.raises(UnreadableError, match=r"more than .* pixels"):
        look(saved(Image.fromarray(COLOUR)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_damage_at_random_is_one_line_or_an_image(kind):
    """Thirty mutations each here; ``experiments.faults`` has the long form."""
    rng = np.random.default_rng(0)
    content = saved(Image.fromarray(COLOUR), kind)
    for _ in range(30):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 3):
            damaged[place] = rng.integers(256)
        cut = bytes(damaged[: rng.integers(1, len(damaged) + 1)])
        try:
            seen = whole(cut)
        except UnreadableError as error:
            seen = str(error)
        assert "\n" not in seen if isinstance(seen, str) else seen.shape == (H, W, 3)


def test_every_suffix_is_of_a_kind_that_is_read():
    assert {".png", ".jpg", ".jpeg", ".tif", ".webp", ".gif", ".bmp"} <= suffixes()
    assert not {".eps", ".ps", ".pdf", ".fits"} & suffixes()
    assert "EPS" not in FORMATS
