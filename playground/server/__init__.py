"""HTTP routes beside the pages: for monitoring, and for whoever is not a browser."""

from playground.server.routes import operations_routes

__all__ = ["operations_routes"]
