"""The certificate uid: unguessable, easy to read out and to type, with a check character; and texts as they are shown."""

import re
import secrets

#: Crockford's base 32: digits and capital letters without I, L, O and U (https://www.crockford.com/base32.html).
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans("OIL", "011")
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0x110000, 0x10000))
    + "]"
)
#: Random characters, of 5 bits each: 115 bits.
_RANDOM_CHARACTERS = 23


def new_uid() -> str:
    """A fresh uid: 23 random characters and the check character, in six groups of four."""
    while True:
        characters = "".join(secrets.choice(ALPHABET) for _ in range(_RANDOM_CHARACTERS))
        remainder = _remainder(characters)
        # Five of 37 remainders have no character of their own in the alphabet; then it is drawn again.
        if remainder < len(ALPHABET):
            return _grouped(characters + ALPHABET[remainder])


def read_uid(text: str) -> str | None:
    """The uid that someone typed, as it is stored; None if it was mistyped.

    Case, hyphens and white space don't matter, O is read as 0, I and L as 1. The check character is the number modulo 37,
    as in Crockford's scheme: since 37 is prime and greater than 32, one wrong character is always noticed, and so are two
    neighbours that changed places.
    """
    characters = "".join(text.upper().split()).replace("-", "").translate(_READ_AS)
    if len(characters) != _RANDOM_CHARACTERS + 1 or any(c not in ALPHABET for c in characters):
        return None
    if _remainder(characters[:-1]) != ALPHABET.index(characters[-1]):
        return None
    return _grouped(characters)


def _remainder(characters: str) -> int:
    number = 0
    for character in characters:
        number = number * len(ALPHABET) + ALPHABET.index(character)
    return number % 37


def _grouped(characters: str) -> str:
    return "-".join(characters[n : n + 4] for n in range(0, len(characters), 4))


def printable(text: str) -> str:
    """A text as documents and credentials show it: white space folded, nothing unseen in it; a dash where nothing is left.

    What controls a terminal goes, what Unicode says is no character, and what changes the direction of writing: with that, a
    name could make the words around it read otherwise. Joiners stay, which some scripts need.
    """
    return " ".join(_UNSEEN.sub("", " ".join(text.split())).split()) or "\N{EM DASH}"
