"""The page that a browser shows: static files without a build step, and the routes that serve them."""

from ltx_serve.page.routes import page_routes

__all__ = ["page_routes"]
