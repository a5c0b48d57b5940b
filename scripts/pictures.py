"""Make the pictures of the rendered website small: a diagram has few colours, and so needs a palette only.

matplotlib writes four bytes a pixel. Where 64 or 256 colours show the same picture, they are written instead, which takes a
third of the room; a photograph stays as it is. The saved notebooks keep the pictures that matplotlib wrote.
"""

import base64
import io
import re
from pathlib import Path

EMBEDDED = re.compile(r"(?<=data:image/png;base64,)[A-Za-z0-9+/=\s]+")
UNSEEN = 0.5  # mean difference of a colour channel, of 255


def with_palette(png: bytes) -> bytes:
    "The same picture with a palette, or as it is where the palette would be seen, or is no gain."
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(png))
    if picture.mode == "RGBA" and picture.getextrema()[3] == (255, 255):
        picture = picture.convert("RGB")
    if picture.mode != "RGB":
        return png
    for colours in (64, 256):
        few = picture.quantize(colours, dither=Image.Dither.NONE)
        difference = np.abs(np.asarray(few.convert("RGB"), dtype=int) - np.asarray(picture, dtype=int)).mean()
        if difference < UNSEEN:
            packed = io.BytesIO()
            few.save(packed, "PNG", optimize=True)
            return min(png, packed.getvalue(), key=len)
    return png


def shrink_pictures(site: Path) -> None:
    "Give the diagrams of every page a palette, in the page (smalldocs) or beside it (Quarto)."
    try:
        import PIL  # noqa: F401
    except ImportError:
        print("Pillow is not installed, so the pictures keep their size: pip install pillow numpy")
        return
    shrink = lambda found: base64.b64encode(with_palette(base64.b64decode(found[0]))).decode()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if "data:image/png;base64," in text:
            page.write_text(EMBEDDED.sub(shrink, text), encoding="utf-8")
    for file in site.rglob("figure-html/*.png"):
        file.write_bytes(with_palette(file.read_bytes()))
