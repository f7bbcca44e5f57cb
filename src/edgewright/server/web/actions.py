"""What forms do. Each is guarded by its right, and by the token that only who has read the page knows."""

from typing import Any

from litestar import Response, post
from litestar.params import FromPath

from edgewright.contract.api.operator_api import Invite, NewToken, NewUser, RolloutAct, Silencing
from edgewright.contract.errors import WorkError
from edgewright.server import read_models
from edgewright.server.access_control import Right
from edgewright.server.auth.authentication import guard
from edgewright.server.web.form_fields import Form, number, text
from edgewright.server.web.renderer import ASKED, Press, moved
from edgewright.server.web.view_models.devices import labels_of
from edgewright.server.web.views import access_page

__all__ = ["levers"]

_RIGHTS: dict[RolloutAct, Right] = {
    "advance": "advance rollouts",
    "pause": "pause rollouts",
    "resume": "advance rollouts",
    "abort": "roll back",
}
_HOUR_S, _DAY_S = 3600.0, 86400.0


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
            if text(data, "counter") != str(read_models.plan(press.services, model, device_class).counter):
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
        asked = Silencing(text(data, "rule"), text(data, "subject"), hours * _HOUR_S, text(data, "why"))
        acts.silence(by(request), asked)
        return moved("/alerts")

    @post(
        "/devices/{device_id:str}/retire",
        guards=[guard("retire devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire(request: ASKED, device_id: FromPath[str], data: Form) -> Response[Any]:
        acts.retire_device(by(request), device_id, text(data, "why"))
        return moved(f"/devices/{device_id}")

    @post(
        "/devices/{device_id:str}/bench",
        guards=[guard("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def bench(request: ASKED, device_id: FromPath[str], data: Form) -> Response[Any]:
        acts.mark_bench(by(request), device_id, bench=text(data, "bench") == "yes")
        return moved(f"/devices/{device_id}")

    @post(
        "/access/invite",
        guards=[guard("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def invite(request: ASKED, data: Form) -> Response[str]:
        asked = Invite(
            text(data, "device_class"),
            labels_of(text(data, "labels")),
            text(data, "channel"),
            text(data, "bench") == "yes",
            number(data, "hours", least=0.1, most=24 * 90) * _HOUR_S,
        )
        (secret,) = acts.invite(by(request), asked)
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
        days = number(data, "days", least=1, most=366)
        secret = acts.add_token(by(request), NewToken(text(data, "name"), text(data, "role"), days * _DAY_S))
        return access_page(press, request, what=f"Token {text(data, 'name')}", secret=secret, command="")

    @post(
        "/access/tokens/{name:str}/retire",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_token(request: ASKED, name: FromPath[str]) -> Response[Any]:
        acts.retire_token(by(request), name)
        return moved("/access")

    @post(
        "/access/users",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def add_user(request: ASKED, data: Form) -> Response[Any]:
        acts.add_user(by(request), NewUser(text(data, "name"), text(data, "role"), data.get("password", "")))
        return moved("/access")

    @post(
        "/access/users/{name:str}/retire",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_user(request: ASKED, name: FromPath[str]) -> Response[Any]:
        acts.retire_user(by(request), name)
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
