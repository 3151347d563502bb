"""The certificate uid: unguessable, easy to read out and to type, with a check character; and texts as they are shown."""

import secrets
import unicodedata

#: Crockford's base 32: digits and capital letters without I, L, O and U (https://www.crockford.com/base32.html).
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_READ_AS = str.maketrans("OIL", "011")
#: Embeddings, overrides and isolates (Unicode Standard Annex 9).
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
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
    """A text as documents and credentials show it: white space folded, without control characters.

    Those that change the direction of writing go too: with them, a name could make the words around it read otherwise.
    """
    kept = (c for c in text if c.isspace() or (unicodedata.category(c) != "Cc" and c not in _DIRECTIONS))
    return " ".join("".join(kept).split())
