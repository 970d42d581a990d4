"""Inputs: rows of any source, their digests, and the token windows made of them."""
