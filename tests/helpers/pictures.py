"""Pictures of the documentation, taken by the tests of the pages: ECHO_LM_PICTURES=docs/figures."""

import os
from io import BytesIO
from pathlib import Path

PICTURES = os.environ.get("ECHO_LM_PICTURES")


def take(page, name: str, *, whole: bool = True) -> None:
    """Save what a page shows as `dashboard_NAME.png`, with few colours as the project's figures have."""
    if not PICTURES:
        return
    from PIL import Image

    page.mouse.move(0, 0)
    shot = page.locator("body").screenshot() if whole else page.screenshot()
    picture = Image.open(BytesIO(shot)).convert("RGB")
    few = picture.quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(Path(PICTURES) / f"dashboard_{name}.png", optimize=True)
