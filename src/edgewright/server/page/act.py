"""What forms do. Each is guarded by its right, and by the token that only who has read the page knows."""

from typing import Any

from litestar import Response, post
from litestar.params import FromPath

from edgewright.contract.errors import WorkError
from edgewright.contract.operator import RolloutAct
from edgewright.server import fleets
from edgewright.server.access import Right
from edgewright.server.page.fields import Form, number, text
from edgewright.server.page.look import access_page
from edgewright.server.page.press import ASKED, Press, moved
from edgewright.server.page.shown.devices import labels_of
from edgewright.server.security import guard

__all__ = ["levers"]

_RIGHTS: dict[RolloutAct, Right] = {
    "advance": "advance rollouts",
    "pause": "pause rollouts",
    "resume": "advance rollouts",
    "abort": "roll back",
}


def levers(press: Press) -> list[Any]:
    """Return the handlers."""
    acts, acting = press.acts, press.acts.acting

    def by(request: ASKED) -> str:
        return "" if request.user is None else request.user.name

    def changing(act: RolloutAct) -> Any:
        @post(
            f"/rollouts/{{model:str}}/{{device_class:str}}/{act}",
            guards=[guard(_RIGHTS[act])],
            sync_to_thread=True,
            status_code=200,
        )
        def change(request: ASKED, model: FromPath[str], device_class: FromPath[str], data: Form) -> Response[Any]:
            # Whoever pressed the button meant what the page showed, not what became of it meanwhile.
            if text(data, "counter") != str(fleets.plan(press.services, model, device_class).counter):
                raise WorkError(
                    "the rollout has changed since the page was loaded",
                    remedy="Look at it again, and do it if it is still right.",
                )
            acting.change(by(request), model, device_class, act, text(data, "why"))
            return moved(f"/rollouts/{model}/{device_class}")

        return change

    def settling(verdict: str) -> Any:
        @post(
            f"/alerts/awaiting/{{item:str}}/{verdict}",
            guards=[guard("approve actions")],
            sync_to_thread=True,
            status_code=200,
        )
        def settle(request: ASKED, item: FromPath[str], data: Form) -> Response[Any]:
            acting.settle(by(request), item, approve=verdict == "approve", reason=text(data, "why"))
            return moved("/alerts")

        return settle

    @post(
        "/alerts/silence",
        guards=[guard("silence alerts")],
        sync_to_thread=True,
        status_code=200,
    )
    def silence(request: ASKED, data: Form) -> Response[Any]:
        hours = number(data, "hours", least=0, most=24 * 30)
        why = text(data, "why")
        acts.silence(text(data, "rule"), text(data, "subject"), hours=hours, by=by(request), why=why)
        return moved("/alerts")

    @post(
        "/devices/{device_id:str}/retire",
        guards=[guard("retire devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire(request: ASKED, device_id: FromPath[str], data: Form) -> Response[Any]:
        acts.retire_device(device_id, by=by(request), why=text(data, "why"))
        return moved(f"/devices/{device_id}")

    @post(
        "/devices/{device_id:str}/bench",
        guards=[guard("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def bench(request: ASKED, device_id: FromPath[str], data: Form) -> Response[Any]:
        acts.mark_bench(device_id, bench=text(data, "bench") == "yes", by=by(request))
        return moved(f"/devices/{device_id}")

    @post(
        "/access/invite",
        guards=[guard("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def invite(request: ASKED, data: Form) -> Response[str]:
        secret = acts.invite(
            text(data, "device_class"),
            labels=labels_of(text(data, "labels")),
            channel=text(data, "channel"),
            bench=text(data, "bench") == "yes",
            hours=number(data, "hours", least=0.1, most=24 * 90),
            by=by(request),
        )
        server = press.address or f"{request.url.scheme}://{request.url.netloc}"
        rest = "--root 1.root.json --state edgewright-device"
        command = f"edgewright device enrol --server {server} --token {secret} {rest}"
        return access_page(press, request, what="An invitation for one device", secret=secret, command=command)

    @post(
        "/access/tokens",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def add_token(request: ASKED, data: Form) -> Response[str]:
        days = number(data, "days", least=1, most=3650)
        secret = acts.add_token(text(data, "name"), text(data, "role"), days=days, by=by(request))
        return access_page(press, request, what=f"Token {text(data, 'name')}", secret=secret, command="")

    @post(
        "/access/tokens/{name:str}/retire",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_token(request: ASKED, name: FromPath[str]) -> Response[Any]:
        acts.retire_token(name, by=by(request))
        return moved("/access")

    @post(
        "/access/users",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def add_user(request: ASKED, data: Form) -> Response[Any]:
        acts.add_user(text(data, "name"), text(data, "role"), data.get("password", ""), by=by(request))
        return moved("/access")

    @post(
        "/access/users/{name:str}/retire",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_user(request: ASKED, name: FromPath[str]) -> Response[Any]:
        acts.retire_user(name, by=by(request))
        return moved("/access")

    return [
        *(changing(act) for act in _RIGHTS),
        *(settling(verdict) for verdict in ("approve", "refuse")),
        silence,
        retire,
        bench,
        invite,
        add_token,
        retire_token,
        add_user,
        retire_user,
    ]
