"""The site of boards: static pages that open from the file system, without a network or a server.

Layout: ``index.html`` over all boards; ``boards/<name>/`` with the board's page, one page that shows any of
its cells, and their data in small files; ``methods/<method>.html``; ``assets/`` with styles and scripts, once.
The site of one board has the board's page as its ``index.html``.
"""

from kdbench.leaderboard.site.model import SiteBoard
from kdbench.leaderboard.site.write import render_site, write_site

__all__ = ["SiteBoard", "render_site", "write_site"]
