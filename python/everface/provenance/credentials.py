"""The key that signs videos: the user's, or one that is generated at first use and stays in the cache.

A folder holds `chain.pem`, the certificates with the signer's first, and `key.pem`, its private key (PKCS #8, not encrypted).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from everface.core.errors import BadInput

CHAIN, KEY = "chain.pem", "key.pem"
GENERATED = "everface generated key"  # the name in a generated certificate
YEARS = 20  # that a generated certificate is valid: no time stamp says that a video was signed before its end
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
SIGN_ONLY = {
    "digital_signature": True, "content_commitment": False, "key_encipherment": False, "data_encipherment": False, "key_agreement": False,
    "key_cert_sign": False, "crl_sign": False, "encipher_only": False, "decipher_only": False,
}  # fmt: skip


@dataclass(frozen=True)
class Credentials:
    """Certificates and private key as PEM, and the C2PA name of the algorithm."""

    chain_pem: bytes
    key_pem: bytes
    algorithm: str
    name: str  # the certificate's common name
    serial: str  # the certificate's number, in decimal

    @property
    def generated(self) -> bool:
        return self.name == GENERATED


def read_credentials(folder: Path) -> Credentials:
    """The key in a folder. Raises BadInput if it is missing, does not fit its certificate, or the certificate is out of date."""
    try:
        chain_pem, key_pem = (folder / CHAIN).read_bytes(), (folder / KEY).read_bytes()
    except OSError as error:
        raise BadInput(f"the signing key in {folder} cannot be read ({error.strerror}): put {CHAIN} and {KEY} there, see SECURITY.md") from None
    try:
        signer = x509.load_pem_x509_certificates(chain_pem)[0]
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, IndexError) as error:
        raise BadInput(f"the signing key in {folder} is damaged or encrypted ({error}): write {CHAIN} and {KEY} as PEM") from None
    if _public(key.public_key()) != _public(signer.public_key()):
        raise BadInput(f"{KEY} in {folder} does not belong to the first certificate of {CHAIN}: put the signer's certificate first")
    now = datetime.datetime.now(datetime.UTC)
    if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
        raise BadInput(f"the certificate in {folder} is valid until {signer.not_valid_after_utc:%Y-%m-%d}: get another one")
    names = signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Credentials(chain_pem, key_pem, _algorithm(key, folder), str(names[0].value) if names else "", str(signer.serial_number))


def generate_credentials(folder: Path) -> None:
    """Make a key with certificates of its own in a new folder; where there is one already, it stays. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".signing-", dir=folder.parent))  # only this user can enter it
    try:
        chain_pem, key_pem = _generate()
        (made / CHAIN).write_bytes(chain_pem)
        (made / KEY).touch(mode=0o600)
        (made / KEY).write_bytes(key_pem)
        with contextlib.suppress(FileExistsError):  # another process was quicker
            _rename(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _rename(made: Path, folder: Path) -> None:
    """To a name that no folder with something in it has. Raises FileExistsError."""
    try:
        made.rename(folder)
    except OSError:
        if (folder / KEY).exists():
            raise FileExistsError from None
        raise


def _generate() -> tuple[bytes, bytes]:
    """Certificates and key. C2PA wants a signer that did not sign its own certificate; the key of the one that did is thrown away."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = _name("everface generated root")
    root = _certificate(root_name, root_name, root_key.public_key())
    root = root.add_extension(x509.BasicConstraints(True, 0), critical=True)
    root = root.add_extension(x509.KeyUsage(**{**SIGN_ONLY, "digital_signature": False, "key_cert_sign": True}), critical=True)
    leaf = _certificate(_name(GENERATED), root_name, key.public_key())
    leaf = leaf.add_extension(x509.BasicConstraints(False, None), critical=True)
    leaf = leaf.add_extension(x509.KeyUsage(**SIGN_ONLY), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    chain = b"".join(c.sign(root_key, hashes.SHA256()).public_bytes(Encoding.PEM) for c in (leaf, root))
    return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _certificate(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    begin, end = now - datetime.timedelta(days=1), now + datetime.timedelta(days=365 * YEARS)  # clocks differ
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "everface"), x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _algorithm(key: object, folder: Path) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    raise BadInput(f"the key in {folder} is of a kind that C2PA does not know: use P-256, P-384, P-521, Ed25519 or RSA")


def _public(key: object) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # pyright: ignore[reportAttributeAccessIssue]  every kind has it


def is_private(folder: Path) -> bool:
    """Whether nobody but the owner can read the key."""
    return not os.stat(folder / KEY).st_mode & 0o077
