"""Who may put a model into service: the retrain worker signs what it registers, the deploy worker checks it.

The signature covers model, version, run and the digest over all files, so neither another file nor another version's
signature will do. Files, Kafka and MLflow are all writable by others; only the private key is not.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.errors import Reject, UserError
from schemas.events import ModelRegistered

_KIND: Final = "driftloop.model.v1"  # a signature over anything else never passes for one over a model


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The retrain worker's key. key_id: what its public half is filed under."""

    private: Ed25519PrivateKey
    key_id: str

    def signed(self, registered: ModelRegistered) -> ModelRegistered:
        """The event with its signature; ed25519 gives the same one for the same event."""
        signature = base64.b64encode(self.private.sign(_statement(registered))).decode()
        return msgspec.structs.replace(registered, signature=signature, key_id=self.key_id)


def check_signature(registered: ModelRegistered, trusted: Path, own: SigningKey | None = None) -> None:
    """Returns if a key in the folder `trusted`, or our own, has signed the event.

    Raises Reject: `unsigned`, `unknown-key` (not in the folder), `bad-signature` (of something else).
    """
    if registered.signature is None or registered.key_id is None:
        raise Reject("unsigned", f"version {registered.version} carries no signature")
    keys = _trusted(trusted) | ({} if own is None else {own.key_id: own.private.public_key()})
    key = keys.get(registered.key_id)
    if key is None:
        shown = registered.key_id[:64]
        raise Reject("unknown-key", f"version {registered.version} is signed by {shown!r}, which is not in {trusted}")
    try:
        key.verify(base64.b64decode(registered.signature, validate=True), _statement(registered))
    except (InvalidSignature, ValueError) as error:
        raise Reject("bad-signature", f"version {registered.version} is not what {registered.key_id} signed") from error


def own_key(home: Path, trusted: Path) -> SigningKey:
    """This machine's key, made on the first call, its public half filed under `trusted`. Raises UserError."""
    path = home / "keys" / "signing.pem"
    try:
        if not path.exists():
            _create(path)
        key = key_from(path.read_bytes(), str(path))
        public = trusted / f"{key.key_id}.pem"
        if not public.exists():
            trusted.mkdir(parents=True, exist_ok=True)
            _write(public, _pem(key.private.public_key()), 0o644)
    except OSError as error:
        raise UserError(f"the signing key cannot be kept: {error}; make {path.parent} and {trusted} writable") from None
    return key


def key_from(pem: bytes, where: str) -> SigningKey:
    """The key in a PEM text; where: what to call it in the error. Raises UserError."""
    try:
        private = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{where} holds no private key ({error}); `openssl genpkey -algorithm ed25519` makes one"
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise UserError(f"{where} holds another kind of key; `openssl genpkey -algorithm ed25519` makes one that fits")
    return SigningKey(private, _id_of(private.public_key()))


def _statement(registered: ModelRegistered) -> bytes:
    """What is signed: JSON with sorted keys and no spaces."""
    said = {
        "kind": _KIND,
        "model": registered.model,
        "version": registered.version,
        "run_id": registered.run_id,
        "digest": registered.digest,
    }
    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def _trusted(folder: Path) -> dict[str, Ed25519PublicKey]:
    """The ed25519 public keys in *.pem of the folder, by their ids; what is no such key is passed over."""
    found = {}
    for path in sorted(folder.glob("*.pem")):
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (ValueError, OSError):
            continue
        if isinstance(key, Ed25519PublicKey):
            found[_id_of(key)] = key
    return found


def _id_of(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, pem, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    """A whole file or none. The first of two that write at once wins; the other takes its file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()
