"""Keys of Ed25519, and signatures by them. Who checks them: `runtime.storage.trust`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from export.errors import ExportError
from export.release.config import PRIVATE_KEY, PUBLIC_KEY, KeysConfig, SignConfig
from runtime.bundle import MANIFEST, read_bundle
from runtime.errors import OutputError
from runtime.storage.files import Kind, check_output, replacing, write_file
from runtime.storage.signature import SHOWN, SIGNATURE, Signature, name_of
from runtime.storage.trust import DEVELOPMENT, KEY_FILE, RELEASE, key_file

SECRET = Kind("a private key", (b"-----BEGIN PRIVATE KEY-----",))
SIGNED = Kind("a signature of a bundle", (b"anchorvla release ", b"Ed25519 "))


def make_keys(config: KeysConfig) -> Path:
    """Write a new pair.

    Returns:
        The public key's file.

    Raises:
        OutputError: there are keys already, or they cannot be written.
    """
    private, public = config.out / PRIVATE_KEY, config.out / PUBLIC_KEY
    for path in (private, public):
        if os.path.lexists(path):
            raise OutputError(
                f"{path}: there is one already, and what it signed would be lost with it; choose "
                "another folder, or move it away"
            )
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    kind = DEVELOPMENT if config.development else RELEASE
    with replacing(private, SECRET) as partial:
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "wb") as file:
            file.write(pem)
    write_file(public, key_file(key.public_key(), kind), KEY_FILE)
    print(f"{kind} key {name_of(key.public_key())[:SHOWN]}")
    print(f"signs releases, keep it secret and keep a copy: {private}")
    print(f"for boards, anchorvla trust add: {public}")
    return public


def sign(config: SignConfig) -> Path:
    """Sign a bundle.

    Returns:
        The signature's file.

    Raises:
        ExportError: the key cannot be used.
        BundleError: the bundle is damaged.
        OutputError: the signature cannot be written.
    """
    key = _private_key(config.key)
    path = config.bundle / SIGNATURE
    manifest = b""

    def keep(_: Path, data: bytes) -> None:
        nonlocal manifest
        manifest = data

    read_bundle(config.bundle, verify=keep)
    check_output(path, SIGNED)
    number = config.number or int(time.strftime("%Y%m%d%H%M%S", time.gmtime()))
    name = name_of(key.public_key())
    unsigned = Signature(name, number, b"")
    made = Signature(name, number, key.sign(unsigned.message(manifest)))
    write_file(path, made.to_bytes(), SIGNED)
    print(f"{config.bundle / MANIFEST}: release {number}, signed by {name[:SHOWN]}")
    return path


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be read ({error.strerror}); make keys with: make keys"
        ) from None
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ExportError(
            f"{path}: not a private key in PEM without a passphrase ({error})"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ExportError(f"{path}: not a key of Ed25519; make one with: make keys")
    return key
