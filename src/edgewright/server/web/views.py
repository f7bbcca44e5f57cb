"""Pages that show the fleet. Whoever may look sees all of them."""

from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.params import FromPath, FromQuery, QueryParameter

from edgewright.contract.errors import EdgewrightError
from edgewright.contract.names import version_key
from edgewright.contract.query.query import DeviceQueryLimits
from edgewright.server import read_models
from edgewright.server.auth.authentication import Principal, require
from edgewright.server.errors import NotFoundError
from edgewright.server.store.records import StoredDevice, rollout_key
from edgewright.server.web.renderer import PageRenderer, PageRequest
from edgewright.server.web.view_models import (
    alerts,
    audit_and_access,
    devices,
    drift,
    formatting,
    overview,
    privacy,
    releases,
    rollouts,
)
from edgewright.trust.publishing.release_documents import bill_of_materials, model_card

__all__ = ["access_page", "view_routes"]

_HOURS = 48
_PAGE = 50
_LIMITS = DeviceQueryLimits()
_Text = Annotated[str, QueryParameter(max_length=200)]


def view_routes(pages: PageRenderer) -> list[Any]:
    """Return the handlers."""
    store, held, look = pages.services.store, pages.catalogue.contents, [require("look")]

    @get("/", guards=look, sync_to_thread=True)
    def fleet(request: PageRequest) -> Response[str]:
        now = pages.now
        started_at = now - _HOURS * 3600
        known = held()
        return pages.page(
            request,
            "fleet",
            shown=overview.overview_view(
                store.devices.groups(),
                store.devices.groups(seen_since=now - pages.offline_seconds),
                known.plans,
                store.alerts.all("firing"),
                known.awaiting,
                silent_after=formatting.duration(pages.offline_seconds),
                now=now,
            ),
            hours=overview.hour_rows(store.check_ins.rollups(started_at, now + 1), started_at, now),
            waiting=alerts.awaiting_rows(pages.commands.commands.pending_actions(), now),
        )

    @get("/rollouts", guards=look, sync_to_thread=True)
    def all_rollouts(request: PageRequest) -> Response[str]:
        rows = [rollouts.rollout_row(plan, pages.now) for plan in held().plans.values()]
        return pages.page(request, "rollouts", rows=rows)

    @get("/rollouts/{model:str}/{device_class:str}", guards=look, sync_to_thread=True)
    def rollout(request: PageRequest, model: FromPath[str], device_class: FromPath[str]) -> Response[str]:
        return pages.page(request, "rollout", shown=_rollout(pages, request, model, device_class))

    @get("/rollouts/{model:str}/{device_class:str}/live", guards=look, sync_to_thread=True)
    def live(
        request: PageRequest,
        model: FromPath[str],
        device_class: FromPath[str],
        seen: _Text = "",
        counter: FromQuery[int] = 0,
    ) -> Response[Any]:
        shown = _rollout(pages, request, model, device_class)
        if shown.digest == seen:
            return Response(None, status_code=204)
        return pages.page(request, "rollout_live", shown=shown, changed=shown.counter != counter)

    @get(
        "/rollouts/{model:str}/{device_class:str}/decisions/{rollout_name:str}/{number:int}",
        guards=look,
        sync_to_thread=True,
    )
    def decision(
        request: PageRequest,
        model: FromPath[str],
        device_class: FromPath[str],
        rollout_name: FromPath[str],
        number: FromPath[int],
    ) -> Response[str]:
        subject = rollout_key(model, device_class, rollout_name)
        one = next((one for one in store.decisions.for_subject(subject) if one.number == number), None)
        if one is None:
            raise NotFoundError(f"there is no decision {number} about {subject}", remedy="See the rollout's page.")
        href = f"/rollouts/{model}/{device_class}"
        shown = rollouts.decision_inputs_view(one, href, pages.now)
        return pages.page(request, "decision", shown=shown, href=href, subject=subject)

    @get("/devices", guards=look, sync_to_thread=True)
    def all_devices(
        request: PageRequest,
        after: _Text = "",
        device_class: _Text = "",
        version: _Text = "",
        label: _Text = "",
        offline: _Text = "",
        retired: _Text = "",
    ) -> Response[str]:
        found: list[StoredDevice] = store.devices.list_devices(
            after=after,
            limit=_PAGE + 1,
            device_class=device_class.strip(),
            version={"": None, "-": ""}.get(version.strip(), version.strip()),
            labels=devices.labels_of(label),
            offline_since=pages.now - pages.offline_seconds if offline else None,
            retired=bool(retired),
        )
        groups = store.devices.groups()
        chosen = {
            "device_class": device_class,
            "version": version,
            "label": label,
            "offline": offline,
            "retired": retired,
        }
        return pages.page(
            request,
            "devices",
            rows=devices.device_rows(found[:_PAGE], offline_seconds=pages.offline_seconds, now=pages.now),
            after=after,
            last=found[_PAGE - 1].id if len(found) > _PAGE else "",
            chosen=chosen,
            classes=sorted({group.device_class for group in groups}),
            versions=sorted({group.version for group in groups if group.version}, key=version_key, reverse=True),
            silent_after=formatting.duration(pages.offline_seconds),
        )

    @get("/devices/{device_id:str}", guards=look, sync_to_thread=True)
    def device(request: PageRequest, device_id: FromPath[str]) -> Response[str]:
        found = store.devices.get(device_id)
        if found is None:
            raise NotFoundError(f"there is no device {device_id[:80]!r}", remedy="See the list of devices.")
        shown = devices.device_view(found, offline_seconds=pages.offline_seconds, now=pages.now)
        who = _principal(request)
        may = {"retire": who.has_permission("retire devices"), "profiling": who.has_permission("invite devices")}
        return pages.page(request, "device", shown=shown, may=may)

    @get("/releases", guards=look, sync_to_thread=True)
    def all_releases(request: PageRequest) -> Response[str]:
        known = held()
        rows = releases.release_rows(known.releases, known.plans, store.devices.groups())
        return pages.page(request, "releases", rows=rows, awaiting=", ".join(known.awaiting))

    @get("/releases/{model:str}/{version:str}", guards=look, sync_to_thread=True)
    def release(request: PageRequest, model: FromPath[str], version: FromPath[str]) -> Response[str]:
        known, manifest = held().releases, _manifest(pages, model, version)
        shown = releases.release_view(manifest, known[model, version], known, store.devices.groups())
        return pages.page(request, "release", shown=shown)

    @get("/releases/{model:str}/{version:str}/card", guards=look, sync_to_thread=True)
    def card(model: FromPath[str], version: FromPath[str]) -> Response[str]:
        return Response(model_card(_manifest(pages, model, version)), media_type="text/plain; charset=utf-8")

    @get("/releases/{model:str}/{version:str}/bom.json", guards=look, sync_to_thread=True)
    def bill(model: FromPath[str], version: FromPath[str]) -> Response[bytes]:
        content = msgspec.json.encode(bill_of_materials(_manifest(pages, model, version)))
        return Response(msgspec.json.format(content, indent=1), media_type="application/json")

    @get("/drift", guards=look, sync_to_thread=True)
    def moved(request: PageRequest) -> Response[str]:
        asked = sorted({(one.model, one.device_class) for one in store.queries.all()})
        shown, unjudged = [], []
        for names in asked:
            try:
                found, why = pages.findings(*names), "too few sums have ended"
            except EdgewrightError as error:
                found, why = None, str(error)
            if found is None:
                unjudged.append((*names, why))
            else:
                shown.append(drift.drift_view(*names, found))
        return pages.page(request, "drift", shown=shown, unjudged=unjudged)

    @get("/privacy", guards=look, sync_to_thread=True)
    def spent(request: PageRequest) -> Response[str]:
        queries, since = store.queries.all(), pages.now - _LIMITS.period_seconds
        by_class = {one.device_class: store.queries.spent_rho(one.device_class, since=since) for one in queries}
        return pages.page(
            request,
            "privacy",
            rows=privacy.query_rows(queries, pages.now),
            budgets=privacy.budget_rows(by_class, _LIMITS),
        )

    @get("/alerts", guards=look, sync_to_thread=True)
    def ringing(request: PageRequest) -> Response[str]:
        now, who = pages.now, _principal(request)
        return pages.page(
            request,
            "alerts",
            rows=alerts.alert_rows(store.alerts.all(), now),
            waiting=alerts.awaiting_rows(pages.commands.commands.pending_actions(), now),
            changes=alerts.change_rows(store.alerts.changes(limit=_PAGE), now),
            rules=alerts.rule_rows(pages.services.fleet_config.alerts),
            may={"silence": who.has_permission("silence alerts"), "settle": who.has_permission("approve actions")},
        )

    @get("/audit", guards=look, sync_to_thread=True)
    def audit(
        request: PageRequest, before: Annotated[int, QueryParameter(ge=1, le=1 << 62)] = 1 << 62
    ) -> Response[str]:
        found = store.audit.entries(before=before, limit=_PAGE + 1)
        return pages.page(
            request,
            "audit",
            rows=audit_and_access.entry_rows(found[:_PAGE], pages.now),
            last=found[_PAGE - 1].number if len(found) > _PAGE else 0,
            newest=before == 1 << 62,
        )

    @get("/audit/chain", guards=look, sync_to_thread=True)
    def chain(request: PageRequest) -> Response[str]:
        # The head is read first: whatever is written meanwhile comes after it.
        head = store.audit.head()
        shown = audit_and_access.chain(store.audit.broken_at(known=head), head)
        name = "chain_live" if request.headers.get("HX-Request") else "chain"
        return pages.page(request, name, shown=shown, digest=head[1])

    @get("/access", guards=[require("invite devices")], sync_to_thread=True)
    def access(request: PageRequest) -> Response[str]:
        return access_page(pages, request)

    return [
        fleet,
        all_rollouts,
        rollout,
        live,
        decision,
        all_devices,
        device,
        all_releases,
        release,
        card,
        bill,
        moved,
        spent,
        ringing,
        audit,
        chain,
        access,
    ]


def access_page(press: PageRenderer, request: PageRequest, **made: Any) -> Response[str]:
    """Return the page of users, tokens and invitations.

    Args:
        press: That makes it.
        request: That asks for it.
        made: A secret that is shown this once: `what`, `secret` and for a device its `command`.
    """
    store, now, manages = press.services.store, press.now, _principal(request).has_permission("manage access")
    return press.page(
        request,
        "access",
        manages=manages,
        invited=audit_and_access.invited_rows(store.devices.open_enrolment_tokens(now=now), now),
        tokens=audit_and_access.token_rows(store.accounts.tokens(), now) if manages else (),
        users=audit_and_access.user_rows(store.accounts.users(), now) if manages else (),
        made=made,
    )


def _principal(request: PageRequest) -> Principal:
    who = request.user
    assert who is not None  # noqa: S101 (the guard has let them in)
    return who


def _manifest(press: PageRenderer, model: str, version: str) -> Any:
    found = press.catalogue.manifest(model, version)
    if found is None:
        raise NotFoundError(f"{model[:80]} {version[:40]} is not published", remedy="See the list of releases.")
    return found


def _rollout(press: PageRenderer, request: PageRequest, model: str, device_class: str) -> rollouts.RolloutView:
    plan = read_models.find_plan(press.services, model, device_class)
    decided = press.services.store.decisions.for_subject(rollout_key(model, device_class, plan.rollout))
    return rollouts.rollout_view(
        plan,
        press.catalogue.policy(model, device_class),
        decided,
        role=_principal(request).role,
        now=press.now,
    )
