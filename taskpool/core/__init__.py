"""Decides, touches nothing: values in, commands out."""
