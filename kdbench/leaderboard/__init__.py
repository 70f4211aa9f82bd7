"""Boards: pure functions of records, as CSV, Markdown and one self-contained web page."""

from kdbench.leaderboard.build import build_board, render_board

__all__ = ["build_board", "render_board"]
