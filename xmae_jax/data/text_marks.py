"""Burnt-in text."""


def has_text(pixels):
    return False
