"""Makes the two fonts of last resort, shared/certificate/fonts/*.ttf: python scripts/make_fallback_font.py.

Both show every code point as the same box: "Certificate Fallback" what no other font has, so that a text always has a glyph;
"Certificate Hidden" the text that lies unseen over a drawn one. A character map of format 13 ("many-to-one range mappings",
OpenType, `cmap`) says so in one range, hence about a kilobyte each.
"""

from pathlib import Path
from typing import Any

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import newTable
from fontTools.ttLib.tables._c_m_a_p import CmapSubtable

FOLDER = Path(__file__).parent.parent / "shared/certificate/fonts"


def box():
    """A rectangle with a rectangular hole, as high as Noto's capitals and somewhat below the baseline.

    The needless point in the middle of the upper edge is how it is recognised where there is nothing but outlines.
    """
    pen = TTGlyphPen(None)
    for corners in (
        [(60, -60), (60, 760), (330, 760), (600, 760), (600, -60)],
        [(105, -15), (555, -15), (555, 715), (105, 715)],
    ):
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
    return pen.glyph()


def make(name: str) -> None:
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "space", "any"])
    builder.setupGlyf({".notdef": box(), "space": TTGlyphPen(None).glyph(), "any": box()})
    builder.setupHorizontalMetrics({".notdef": (660, 0), "space": (260, 0), "any": (660, 0)})
    builder.setupHorizontalHeader(ascent=1069, descent=-293)
    builder.setupNameTable(
        {
            "copyright": "Part of learner-progress, under its licence (MIT).",
            "familyName": f"Certificate {name}",
            "styleName": "Regular",
            "uniqueFontIdentifier": f"Certificate{name}-Regular",
            "fullName": f"Certificate {name}",
            "version": "Version 1.000",
            "psName": f"Certificate{name}-Regular",
        }
    )
    builder.setupPost()
    subtable: Any = CmapSubtable.newSubtable(13)
    subtable.platformID, subtable.platEncID = 3, 10
    subtable.format, subtable.reserved, subtable.length, subtable.language, subtable.nGroups = 13, 0, 0, 0, 0
    # The space is a glyph of its own, because shapers put it for what is not to be seen.
    subtable.cmap = {0x20: "space"} | dict.fromkeys(range(0x21, 0x110000), "any")
    cmap: Any = newTable("cmap")
    cmap.tableVersion, cmap.tables = 0, [subtable]
    builder.font["cmap"] = cmap
    builder.setupOS2(sTypoAscender=1069, sTypoDescender=-293, usWinAscent=1069, usWinDescent=293)
    # A shaper places marks by itself in a font that says nothing of positions and classes; so this one says something.
    scripts = "".join(f"languagesystem {script} dflt;" for script in ("DFLT", "latn", "hebr", "arab", "thai", "lao "))
    positions = "feature kern { pos space space 0; } kern;"
    classes = "table GDEF { GlyphClassDef [space any], , , ; } GDEF;"
    builder.addOpenTypeFeatures(scripts + positions + classes)
    # Without the time of making, the same font comes out each time.
    head: Any = builder.font["head"]
    head.created = head.modified = 0
    builder.font.recalcTimestamp = False
    FOLDER.mkdir(exist_ok=True)
    builder.save(FOLDER / f"{name}.ttf")


if __name__ == "__main__":
    make("Fallback")
    make("Hidden")
