"""Adapters: agents made of what speaks another protocol."""
