"""All pages as one router."""

from litestar import Router

from edgewright.server.commands.acts import FleetCommands, OperatorCommands
from edgewright.server.services import Services
from edgewright.server.web.actions import action_routes
from edgewright.server.web.login import error_pages, login_routes
from edgewright.server.web.renderer import FindingsFunction, PageRenderer, no_findings
from edgewright.server.web.repository_cache import RepositoryCache
from edgewright.server.web.views import view_routes

__all__ = ["page_router"]


def page_router(
    services: Services, acting: FleetCommands, *, findings: FindingsFunction = no_findings, address: str = ""
) -> Router:
    """Return the pages; `server.app.make_app` takes them.

    Args:
        services: Store, repository, clock.
        acting: What changes the fleet.
        findings: What private sums say; nothing if not given.
        address: Under which people and devices reach the server; "" for the one that they ask.
    """
    press = PageRenderer(
        services,
        OperatorCommands(services, acting),
        findings,
        RepositoryCache(services.repository),
        address.rstrip("/"),
    )
    return Router(
        "/",
        route_handlers=[*login_routes(press), *view_routes(press), *action_routes(press)],
        exception_handlers=error_pages(press),
        include_in_schema=False,
    )
