"""Naming the kind of a file that is not what it should be, from its first bytes.

People give a PyTorch checkpoint, an error page saved by a browser or a Git LFS pointer where a
parameter file is wanted. "This is a web page" helps them, "bad magic number" does not.
"""

from __future__ import annotations

HEAD_BYTES = 4096

_BINARY_KINDS = (
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch checkpoint (the format before 1.6)"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (for example Keras weights)"),
    (b"\x93NUMPY", "a NumPy .npy array"),
    (b"\x1f\x8b", "a gzip-compressed file"),
    (b"BZh", "a bzip2-compressed file"),
    (b"\xfd7zXZ\x00", "an xz-compressed file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard-compressed file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x7fELF", "a program or shared library"),
)


def describe_kind(head: bytes) -> str:
    """Say in words what a file looks like that begins with ``head``.

    Parameters
    ----------
    head
        The first `HEAD_BYTES` bytes of the file (fewer when the file is shorter).

    Returns
    -------
    str
        A noun phrase, for example ``"a PyTorch zip checkpoint"``.
    """
    if not head:
        return "an empty file"
    if head.startswith(b"PK\x03\x04"):
        return _describe_zip(head)
    for signature, kind in _BINARY_KINDS:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[8:10] == b'{"':
        return "a safetensors file"
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "a Python pickle (for example a PyTorch checkpoint or a Gluon trainer state)"
    if not head.strip(b"\x00"):
        return "a file that begins with zero bytes only (an interrupted copy or download)"
    return _describe_text(head) or f"a file of unknown kind (first bytes {head[:8].hex(' ')})"


def _describe_zip(head: bytes) -> str:
    if b"data.pkl" in head:
        return "a PyTorch zip checkpoint"
    if b".npy" in head:
        return "a NumPy .npz archive"
    return "a zip archive"


def _describe_text(head: bytes) -> str:
    """Name the kind of a text, or return an empty string when ``head`` is not text."""
    # Latin-1 never fails; control characters other than white space tell binary data.
    if any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return ""
    text = head.decode("latin-1").lstrip("\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "a web page (HTML), probably an error page saved in place of the download"
    if text.startswith("<?xml"):
        return "an XML document, probably an error answer saved in place of the download"
    if text.startswith("version https://git-lfs"):
        return "a Git LFS pointer: the file itself was not fetched (`git lfs pull`)"
    if text.startswith("{"):
        nodes = '"nodes"' in text
        return "an MXNet network description (-symbol.json)" if nodes else "a JSON text"
    if all(byte < 127 for byte in head):
        return "a text file"
    return ""
