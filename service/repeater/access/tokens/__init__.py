"""Tokens: signed claims that let a client in (protocol, section 13).

`keys` knows which key allows which algorithm, `jwks` fetches an issuer's keys, `claims` turns a
token's claims into grants, `verifier` puts the three together. PyJWT and cryptography do the
cryptography. Nothing here logs or repeats a token, a key or a secret.
"""
