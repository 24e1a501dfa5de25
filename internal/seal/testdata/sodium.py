"""Opens and makes envelopes with libsodium, independently of the Go code.

Reads a CBOR array of requests from stdin, writes one of answers to stdout:
    {"do": "open", "cluster", "secret", "envelope"}            -> content, or null
    {"do": "seal", "cluster", "secret", "nonce", "content"}    -> envelope
    {"do": "original", "cluster", "secret", "nonce", "content"} -> envelope, version 1
"""
import sys

import cbor2
from nacl.bindings import (crypto_generichash_blake2b_salt_personal as blake2b,
                           crypto_secretbox, crypto_secretbox_open)
from nacl.exceptions import CryptoError


def box(secret, header):
    out = blake2b(b"muster-envelope-v0" + header, digest_size=56, key=secret)
    return out[:32], out[32:]


def head(version, r):
    body = cbor2.dumps([r["cluster"], r["nonce"], len(r["content"]) + 16])
    return bytes([version, len(body)]) + body


def seal(r):
    header = head(0, r)
    key, nonce = box(r["secret"], header)
    return header + crypto_secretbox(r["content"], nonce, key)


def original(r):
    return head(1, r) + crypto_secretbox(r["content"], r["nonce"], r["secret"])


def open_(r):
    e = r["envelope"]
    if e[0] != 0:
        return None
    end = 2 + e[1]
    cluster, nonce, length = cbor2.loads(e[2:end])
    if cluster != r["cluster"] or len(nonce) != 32 or length != len(e) - end:
        return None
    key, nonce = box(r["secret"], e[:end])
    try:
        return crypto_secretbox_open(e[end:], nonce, key)
    except CryptoError:
        return None


do = {"open": open_, "seal": seal, "original": original}
requests = cbor2.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(cbor2.dumps([do[r["do"]](r) for r in requests]))
