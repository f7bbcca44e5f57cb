"""All pages as one router."""

from litestar import Router

from edgewright.server.commands.acts import Acting, Acts
from edgewright.server.services import Services
from edgewright.server.web.actions import levers
from edgewright.server.web.login import doors, refusals
from edgewright.server.web.renderer import Findings, Press, nothing_found
from edgewright.server.web.repository_cache import Catalogue
from edgewright.server.web.views import windows

__all__ = ["page_router"]


def page_router(
    services: Services, acting: Acting, *, findings: Findings = nothing_found, address: str = ""
) -> Router:
    """Return the pages; `server.app.make_app` takes them.

    Args:
        services: Store, repository, clock.
        acting: What changes the fleet.
        findings: What private sums say; nothing if not given.
        address: Under which people and devices reach the server; "" for the one that they ask.
    """
    press = Press(services, Acts(services, acting), findings, Catalogue(services.repository), address.rstrip("/"))
    return Router(
        "/",
        route_handlers=[*doors(press), *windows(press), *levers(press)],
        exception_handlers=refusals(press),
        include_in_schema=False,
    )
