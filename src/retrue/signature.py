"""A model's signature by a KMS key: who can only write to the bucket cannot make a function serve another model."""

import hashlib
from typing import Any

import boto3

from retrue.errors import ModelRefused

ALGORITHM = "ECDSA_SHA_256"  # of a key of the kind ECC_NIST_P256 that may sign and verify


class Signer:
    """Signs and checks manifests, which name the sha256 of every file of a model, with one key."""

    def __init__(self, key: str, client: Any = None) -> None:
        self.key = key
        self.client = client if client is not None else boto3.client("kms")

    def sign(self, manifest: bytes) -> bytes:
        """The signature of a manifest."""
        signature: bytes = self.client.sign(**self._of(manifest))["Signature"]
        return signature

    def check(self, manifest: bytes, signature: bytes) -> None:
        """ModelRefused where the signature is not this key's of this manifest."""
        try:
            valid = self.client.verify(**self._of(manifest), Signature=signature)["SignatureValid"]
        except self.client.exceptions.KMSInvalidSignatureException:
            valid = False
        if not valid:
            raise ModelRefused("the model is not signed by this deployment's key: promote one that it made")

    def _of(self, manifest: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(manifest).digest()
        return {"KeyId": self.key, "Message": digest, "MessageType": "DIGEST", "SigningAlgorithm": ALGORITHM}
