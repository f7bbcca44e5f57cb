"""Makes pages: templates that escape everything, and what stands on every page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from litestar import Response
from litestar.connection import Request

from edgewright.server.auth.authentication import Principal
from edgewright.server.commands.acts import OperatorCommands
from edgewright.server.services import Services
from edgewright.server.web.assets import address_of
from edgewright.server.web.repository_cache import RepositoryCache

__all__ = ["FindingsFunction", "PageRenderer", "PageRequest", "no_findings", "redirect"]

FindingsFunction = Callable[[str, str], dict[str, Any] | None]
"""What private sums say about a model on a device class, as `edgewright query judge --json` has it; None if no sums
were judged."""

PageRequest = Request[Principal | None, Any, Any]
"""What handlers of the page get."""

_TEMPLATES = Environment(
    loader=PackageLoader("edgewright.server.web", "templates"),
    autoescape=True,
    auto_reload=False,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals["asset"] = address_of
_PLACES = (
    ("/", "Fleet", "look"),
    ("/rollouts", "Rollouts", "look"),
    ("/devices", "Devices", "look"),
    ("/releases", "Releases", "look"),
    ("/drift", "Drift", "look"),
    ("/privacy", "Privacy", "look"),
    ("/alerts", "Alerts", "look"),
    ("/audit", "Audit", "look"),
    ("/access", "Access", "invite devices"),
)
# Of a fleet's name, which is long.
_NAME = 18
# Nothing of a page stays in a browser for the next person.
_PRIVATE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class PageRenderer:
    """What handlers make pages with.

    Attributes:
        services: Store, repository, clock.
        commands: What people may have done.
        findings: What private sums say.
        catalogue: Releases and plans.
        address: Under which people and devices reach the server; "" for the one that they ask.
    """

    services: Services
    commands: OperatorCommands
    findings: FindingsFunction
    catalogue: RepositoryCache
    address: str

    @property
    def secure(self) -> bool:
        """Whether the session's cookie goes over TLS alone."""
        return self.address.startswith("https://")

    @property
    def now(self) -> float:
        """Unix time."""
        return self.services.now()

    @property
    def offline_seconds(self) -> float:
        """After which a device is offline."""
        return self.services.fleet_config.monitoring.offline_after_seconds

    def page(self, request: PageRequest, template: str, *, status: int = 200, **shown: Any) -> Response[str]:
        """Return a page.

        Args:
            request: That asks for it.
            template: Its name.
            status: Of the answer.
            shown: What the template shows.
        """
        who = request.scope.get("user")
        path = request.url.path
        places = [
            (href, label, path == href or (href != "/" and path.startswith(f"{href}/")))
            for href, label, right in _PLACES
            if isinstance(who, Principal) and who.has_permission(right)  # type: ignore[arg-type]
        ]
        text = _TEMPLATES.get_template(f"{template}.jinja").render(
            who=who if isinstance(who, Principal) else None,
            csrf=who.csrf_token if isinstance(who, Principal) else "",
            places=places,
            fleet=self.services.audience[:_NAME],
            now=f"{self.now:.1f}",
            **shown,
        )
        return Response(text, status_code=status, media_type="text/html; charset=utf-8", headers=_PRIVATE)


def redirect(place: str, *, headers: dict[str, str] | None = None) -> Response[None]:
    """Return the answer that has a browser load another page."""
    return Response(None, status_code=303, headers={"Location": place, **_PRIVATE, **(headers or {})})


def no_findings(_model: str, _device_class: str) -> None:
    """Say that nobody knows."""
