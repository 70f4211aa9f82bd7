"""The types behind :mod:`kdbench.api`. Plug-ins import them from there, never from here."""
