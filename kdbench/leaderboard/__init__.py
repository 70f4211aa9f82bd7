"""Boards: pure functions of records, as CSV, Markdown, SVG plots and a static site."""

from kdbench.leaderboard.build import build_board, render_board

__all__ = ["build_board", "render_board"]
