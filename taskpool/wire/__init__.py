"""Bytes between processes: messages, frames, pages, codecs."""
