"""Pages that show the fleet. Whoever may look sees all of them."""

from typing import Annotated, Any

import msgspec
from litestar import Response, get
from litestar.params import FromPath, FromQuery, QueryParameter

from edgewright.contract.errors import EdgewrightError
from edgewright.contract.names import version_key
from edgewright.contract.query.query import Limits
from edgewright.server import read_models
from edgewright.server.auth.authentication import Who, guard
from edgewright.server.errors import MissingError
from edgewright.server.store.records import Device, rollout_key
from edgewright.server.web.renderer import ASKED, Press
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

__all__ = ["access_page", "windows"]

_HOURS = 48
_PAGE = 50
_LIMITS = Limits()
_Text = Annotated[str, QueryParameter(max_length=200)]


def windows(press: Press) -> list[Any]:
    """Return the handlers."""
    store, held, look = press.services.store, press.catalogue.held, [guard("look")]

    @get("/", guards=look, sync_to_thread=True)
    def fleet(request: ASKED) -> Response[str]:
        now_s = press.now_s
        start_s = now_s - _HOURS * 3600
        known = held()
        return press.page(
            request,
            "fleet",
            shown=overview.overview(
                store.devices.groups(),
                store.devices.groups(seen_since_s=now_s - press.silent_s),
                known.plans,
                store.alerts.all("firing"),
                known.awaiting,
                silent_after=formatting.duration(press.silent_s),
                now_s=now_s,
            ),
            hours=overview.hour_rows(store.check_ins.hours(start_s, now_s + 1), start_s, now_s),
            waiting=alerts.awaiting_rows(press.acts.acting.awaiting(), now_s),
        )

    @get("/rollouts", guards=look, sync_to_thread=True)
    def all_rollouts(request: ASKED) -> Response[str]:
        rows = [rollouts.rollout_row(plan, press.now_s) for plan in held().plans.values()]
        return press.page(request, "rollouts", rows=rows)

    @get("/rollouts/{model:str}/{device_class:str}", guards=look, sync_to_thread=True)
    def rollout(request: ASKED, model: FromPath[str], device_class: FromPath[str]) -> Response[str]:
        return press.page(request, "rollout", shown=_rollout(press, request, model, device_class))

    @get("/rollouts/{model:str}/{device_class:str}/live", guards=look, sync_to_thread=True)
    def live(
        request: ASKED,
        model: FromPath[str],
        device_class: FromPath[str],
        seen: _Text = "",
        counter: FromQuery[int] = 0,
    ) -> Response[Any]:
        shown = _rollout(press, request, model, device_class)
        if shown.digest == seen:
            return Response(None, status_code=204)
        return press.page(request, "rollout_live", shown=shown, changed=shown.counter != counter)

    @get(
        "/rollouts/{model:str}/{device_class:str}/decisions/{rollout_name:str}/{number:int}",
        guards=look,
        sync_to_thread=True,
    )
    def decision(
        request: ASKED,
        model: FromPath[str],
        device_class: FromPath[str],
        rollout_name: FromPath[str],
        number: FromPath[int],
    ) -> Response[str]:
        subject = rollout_key(model, device_class, rollout_name)
        one = next((one for one in store.decisions.of(subject) if one.number == number), None)
        if one is None:
            raise MissingError(f"there is no decision {number} about {subject}", remedy="See the rollout's page.")
        href = f"/rollouts/{model}/{device_class}"
        shown = rollouts.inputs_shown(one, href, press.now_s)
        return press.page(request, "decision", shown=shown, href=href, subject=subject)

    @get("/devices", guards=look, sync_to_thread=True)
    def all_devices(
        request: ASKED,
        after: _Text = "",
        device_class: _Text = "",
        version: _Text = "",
        label: _Text = "",
        silent: _Text = "",
        retired: _Text = "",
    ) -> Response[str]:
        found: list[Device] = store.devices.page(
            after=after,
            limit=_PAGE + 1,
            device_class=device_class.strip(),
            version={"": None, "-": ""}.get(version.strip(), version.strip()),
            labels=devices.labels_of(label),
            silent_since_s=press.now_s - press.silent_s if silent else None,
            retired=bool(retired),
        )
        groups = store.devices.groups()
        chosen = {
            "device_class": device_class,
            "version": version,
            "label": label,
            "silent": silent,
            "retired": retired,
        }
        return press.page(
            request,
            "devices",
            rows=devices.device_rows(found[:_PAGE], silent_s=press.silent_s, now_s=press.now_s),
            after=after,
            last=found[_PAGE - 1].id if len(found) > _PAGE else "",
            chosen=chosen,
            classes=sorted({group.device_class for group in groups}),
            versions=sorted({group.version for group in groups if group.version}, key=version_key, reverse=True),
            silent_after=formatting.duration(press.silent_s),
        )

    @get("/devices/{device_id:str}", guards=look, sync_to_thread=True)
    def device(request: ASKED, device_id: FromPath[str]) -> Response[str]:
        found = store.devices.get(device_id)
        if found is None:
            raise MissingError(f"there is no device {device_id[:80]!r}", remedy="See the list of devices.")
        shown = devices.device_shown(found, silent_s=press.silent_s, now_s=press.now_s)
        who = _who(request)
        may = {"retire": who.may("retire devices"), "bench": who.may("invite devices")}
        return press.page(request, "device", shown=shown, may=may)

    @get("/releases", guards=look, sync_to_thread=True)
    def all_releases(request: ASKED) -> Response[str]:
        known = held()
        rows = releases.release_rows(known.releases, known.plans, store.devices.groups())
        return press.page(request, "releases", rows=rows, awaiting=", ".join(known.awaiting))

    @get("/releases/{model:str}/{version:str}", guards=look, sync_to_thread=True)
    def release(request: ASKED, model: FromPath[str], version: FromPath[str]) -> Response[str]:
        known, manifest = held().releases, _manifest(press, model, version)
        shown = releases.release_shown(manifest, known[model, version], known, store.devices.groups())
        return press.page(request, "release", shown=shown)

    @get("/releases/{model:str}/{version:str}/card", guards=look, sync_to_thread=True)
    def card(model: FromPath[str], version: FromPath[str]) -> Response[str]:
        return Response(model_card(_manifest(press, model, version)), media_type="text/plain; charset=utf-8")

    @get("/releases/{model:str}/{version:str}/bom.json", guards=look, sync_to_thread=True)
    def bill(model: FromPath[str], version: FromPath[str]) -> Response[bytes]:
        content = msgspec.json.encode(bill_of_materials(_manifest(press, model, version)))
        return Response(msgspec.json.format(content, indent=1), media_type="application/json")

    @get("/drift", guards=look, sync_to_thread=True)
    def moved(request: ASKED) -> Response[str]:
        asked = sorted({(one.model, one.device_class) for one in store.sums.all()})
        shown, unjudged = [], []
        for names in asked:
            try:
                found, why = press.findings(*names), "too few sums have ended"
            except EdgewrightError as error:
                found, why = None, str(error)
            if found is None:
                unjudged.append((*names, why))
            else:
                shown.append(drift.drift_shown(*names, found))
        return press.page(request, "drift", shown=shown, unjudged=unjudged)

    @get("/privacy", guards=look, sync_to_thread=True)
    def spent(request: ASKED) -> Response[str]:
        queries, since_s = store.sums.all(), press.now_s - _LIMITS.period_s
        by_class = {one.device_class: store.sums.spent(one.device_class, since_s=since_s) for one in queries}
        return press.page(
            request,
            "privacy",
            rows=privacy.query_rows(queries, press.now_s),
            budgets=privacy.budget_rows(by_class, _LIMITS),
        )

    @get("/alerts", guards=look, sync_to_thread=True)
    def ringing(request: ASKED) -> Response[str]:
        now_s, who = press.now_s, _who(request)
        return press.page(
            request,
            "alerts",
            rows=alerts.alert_rows(store.alerts.all(), now_s),
            waiting=alerts.awaiting_rows(press.acts.acting.awaiting(), now_s),
            changes=alerts.change_rows(store.alerts.changes(limit=_PAGE), now_s),
            rules=alerts.rule_rows(press.services.fleet.alerts),
            may={"silence": who.may("silence alerts"), "settle": who.may("approve actions")},
        )

    @get("/audit", guards=look, sync_to_thread=True)
    def audit(request: ASKED, before: Annotated[int, QueryParameter(ge=1, le=1 << 62)] = 1 << 62) -> Response[str]:
        found = store.audit.page(before=before, limit=_PAGE + 1)
        return press.page(
            request,
            "audit",
            rows=audit_and_access.entry_rows(found[:_PAGE], press.now_s),
            last=found[_PAGE - 1].number if len(found) > _PAGE else 0,
            newest=before == 1 << 62,
        )

    @get("/audit/chain", guards=look, sync_to_thread=True)
    def chain(request: ASKED) -> Response[str]:
        # The head is read first: whatever is written meanwhile comes after it.
        head = store.audit.head()
        shown = audit_and_access.chain(store.audit.broken_at(known=head), head)
        name = "chain_live" if request.headers.get("HX-Request") else "chain"
        return press.page(request, name, shown=shown, digest=head[1])

    @get("/access", guards=[guard("invite devices")], sync_to_thread=True)
    def access(request: ASKED) -> Response[str]:
        return access_page(press, request)

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


def access_page(press: Press, request: ASKED, **made: Any) -> Response[str]:
    """Return the page of users, tokens and invitations.

    Args:
        press: That makes it.
        request: That asks for it.
        made: A secret that is shown this once: `what`, `secret` and for a device its `command`.
    """
    store, now_s, manages = press.services.store, press.now_s, _who(request).may("manage access")
    return press.page(
        request,
        "access",
        manages=manages,
        invited=audit_and_access.invited_rows(store.devices.invited(now_s=now_s), now_s),
        tokens=audit_and_access.token_rows(store.people.tokens(), now_s) if manages else (),
        users=audit_and_access.user_rows(store.people.users(), now_s) if manages else (),
        made=made,
    )


def _who(request: ASKED) -> Who:
    who = request.user
    assert who is not None  # noqa: S101 (the guard has let them in)
    return who


def _manifest(press: Press, model: str, version: str) -> Any:
    found = press.catalogue.manifest(model, version)
    if found is None:
        raise MissingError(f"{model[:80]} {version[:40]} is not published", remedy="See the list of releases.")
    return found


def _rollout(press: Press, request: ASKED, model: str, device_class: str) -> rollouts.RolloutShown:
    plan = read_models.plan(press.services, model, device_class)
    decided = press.services.store.decisions.of(rollout_key(model, device_class, plan.rollout))
    return rollouts.rollout_shown(
        plan,
        press.catalogue.policy(model, device_class),
        decided,
        role=_who(request).role,
        now_s=press.now_s,
    )
