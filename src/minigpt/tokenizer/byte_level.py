"""How tokens of a byte-level BPE are written down: each byte as one printable letter (GPT-2's `bytes_to_unicode`)."""


def byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes (its `bytes_to_unicode`): printable Latin-1 for itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in letters)
    letters.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
    return letters


_BYTES = byte_alphabet()
_LETTERS = {byte: letter for letter, byte in _BYTES.items()}


def spelled(token: bytes) -> str:
    """A token's bytes in the alphabet."""
    return "".join([_LETTERS[byte] for byte in token])


def unspelled(token: str) -> bytes:
    """The bytes that a token of the alphabet stands for."""
    try:
        return bytes([_BYTES[letter] for letter in token])
    except KeyError:  # not in the alphabet: the library's decoder also takes such a token as text
        return token.encode()
