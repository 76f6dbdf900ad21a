"""Only what a trusted key has signed, for this very version, is put into service."""

import base64

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.trust import check_signature, key_from, own_key
from schemas.errors import Reject, UserError
from schemas.events import ModelRegistered, TrainingWindow

EVENT = ModelRegistered(
    model="activity",
    version="8",
    run_id="run",
    winner="random-forest",
    candidates=[],
    window=TrainingWindow(topic="activity", ranges=[], rows=0, sha256=""),
    digest="sha256:" + "0" * 64,
    caused_by=["drift"],
)


@pytest.fixture
def trusted(tmp_path):
    return tmp_path / "trusted"


@pytest.fixture
def key(tmp_path, trusted):
    return own_key(tmp_path, trusted)


def test_what_the_own_key_signed_is_accepted_also_after_a_restart(key, tmp_path, trusted):
    """The key is made once; a second one would make every earlier version unusable."""
    check_signature(key.signed(EVENT), trusted)
    assert own_key(tmp_path, trusted).signed(EVENT) == key.signed(EVENT)
    assert (tmp_path / "keys" / "signing.pem").stat().st_mode & 0o077 == 0
    assert [path.name for path in trusted.iterdir()] == [f"{key.key_id}.pem"]


@pytest.mark.parametrize(
    "forged", [{"model": "other"}, {"version": "9"}, {"run_id": "other"}, {"digest": "sha256:" + "1" * 64}], ids=str
)
def test_a_signature_is_of_one_version_of_one_model_with_these_files(key, trusted, forged):
    """Whoever may write to Kafka and MLflow could else announce an old version's files as the newest."""
    with pytest.raises(Reject, match="bad-signature"):
        check_signature(msgspec.structs.replace(key.signed(EVENT), **forged), trusted)


@pytest.mark.parametrize("signature", ["", "?", "AAAA", base64.b64encode(bytes(64)).decode()])
def test_what_is_no_signature_is_refused(key, trusted, signature):
    with pytest.raises(Reject, match="bad-signature"):
        check_signature(msgspec.structs.replace(key.signed(EVENT), signature=signature), trusted)


def test_an_unsigned_event_is_refused(key, trusted):
    with pytest.raises(Reject, match="unsigned"):
        check_signature(EVENT, trusted)


def test_a_key_that_is_not_filed_is_refused_whatever_it_calls_itself(key, tmp_path, trusted):
    """The key id comes from the event; it only chooses among keys that are here."""
    other = own_key(tmp_path / "other", tmp_path / "other-trusted")
    with pytest.raises(Reject, match="unknown-key"):
        check_signature(other.signed(EVENT), trusted)
    with pytest.raises(Reject, match="bad-signature"):
        check_signature(msgspec.structs.replace(other.signed(EVENT), key_id=key.key_id), trusted)
    with pytest.raises(Reject, match="unknown-key"):
        check_signature(msgspec.structs.replace(key.signed(EVENT), key_id=f"../trusted/{key.key_id}"), trusted)


def test_a_key_from_a_secret_store_signs_as_one_from_a_file(trusted):
    """There the operator files the public half; nothing is published by itself."""
    private = Ed25519PrivateKey.generate()
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key = key_from(private.private_bytes(*plain), "the secret")
    signed = key.signed(EVENT)
    with pytest.raises(Reject, match="unknown-key"):
        check_signature(signed, trusted)
    trusted.mkdir()
    public = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (trusted / "team.pem").write_bytes(private.public_key().public_bytes(*public))
    (trusted / "notes.pem").write_text("not a key")
    check_signature(signed, trusted)


def test_a_file_that_holds_no_key_is_said_in_one_line():
    """The text of a key must never be part of the message."""
    other = ec.generate_private_key(ec.SECP256R1())
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for content in (b"secret text", other.private_bytes(*plain)):
        with pytest.raises(UserError, match="genpkey") as raised:
            key_from(content, "the file")
        assert "secret" not in str(raised.value)


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(UserError, match="writable"):
        own_key(tmp_path, tmp_path / "trusted")
