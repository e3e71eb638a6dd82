"""The pages of the app, in the order of the top bar. A page is one module here with a `PAGE`, and one line below.

All pages live in one document and stay mounted; the browser shows one of them at a time (`static/core/pages.js`), so
that a reply goes on being written while another page is looked at. The address's hash names the page: `/#chat`.
"""

from playground.ui.pages import chat, compare, lab, models, requests
from playground.ui.pages.page import Page, PageContext

PAGES: tuple[Page, ...] = (chat.PAGE, compare.PAGE, requests.PAGE, lab.PAGE, models.PAGE)

__all__ = ["PAGES", "Page", "PageContext"]
