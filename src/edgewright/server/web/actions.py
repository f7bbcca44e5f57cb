"""What forms do. Each is guarded by its right, and by the token that only who has read the page knows."""

from typing import Any

from litestar import Response, post
from litestar.params import FromPath

from edgewright.contract.api.operator_api import (
    CreateEnrolmentTokens,
    CreateToken,
    CreateUser,
    RolloutAction,
    SilenceAlert,
)
from edgewright.contract.errors import WorkError
from edgewright.server import read_models
from edgewright.server.access_control import Permission
from edgewright.server.auth.authentication import require
from edgewright.server.web.form_fields import FormData, parse_number, read_text_field
from edgewright.server.web.renderer import PageRenderer, PageRequest, redirect
from edgewright.server.web.view_models.devices import labels_of
from edgewright.server.web.views import access_page

__all__ = ["action_routes"]

_RIGHTS: dict[RolloutAction, Permission] = {
    "advance": "advance rollouts",
    "pause": "pause rollouts",
    "resume": "advance rollouts",
    "abort": "roll back",
}
_HOUR_SECONDS, _DAY_SECONDS = 3600.0, 86400.0


def action_routes(pages: PageRenderer) -> list[Any]:
    """Return the handlers."""
    acts, acting = pages.commands, pages.commands.commands

    def by(request: PageRequest) -> str:
        return "" if request.user is None else request.user.name

    def changing(act: RolloutAction) -> Any:
        @post(
            f"/rollouts/{{model:str}}/{{device_class:str}}/{act}",
            guards=[require(_RIGHTS[act])],
            sync_to_thread=True,
            status_code=200,
        )
        def change(
            request: PageRequest, model: FromPath[str], device_class: FromPath[str], data: FormData
        ) -> Response[Any]:
            # Whoever pressed the button meant what the page showed, not what became of it meanwhile.
            if read_text_field(data, "counter") != str(
                read_models.find_plan(pages.services, model, device_class).counter
            ):
                raise WorkError(
                    "the rollout has changed since the page was loaded",
                    remedy="Look at it again, and do it if it is still right.",
                )
            acting.change_rollout(by(request), model, device_class, act, read_text_field(data, "reason"))
            return redirect(f"/rollouts/{model}/{device_class}")

        return change

    def settling(verdict: str) -> Any:
        @post(
            f"/alerts/awaiting/{{item:str}}/{verdict}",
            guards=[require("approve actions")],
            sync_to_thread=True,
            status_code=200,
        )
        def settle(request: PageRequest, item: FromPath[str], data: FormData) -> Response[Any]:
            acting.decide_action(
                by(request), item, approve=verdict == "approve", reason=read_text_field(data, "reason")
            )
            return redirect("/alerts")

        return settle

    @post(
        "/alerts/silence",
        guards=[require("silence alerts")],
        sync_to_thread=True,
        status_code=200,
    )
    def silence(request: PageRequest, data: FormData) -> Response[Any]:
        hours = parse_number(data, "hours", least=0, most=24 * 30)
        asked = SilenceAlert(
            read_text_field(data, "rule"),
            read_text_field(data, "subject"),
            hours * _HOUR_SECONDS,
            read_text_field(data, "reason"),
        )
        acts.silence_alert(by(request), asked)
        return redirect("/alerts")

    @post(
        "/devices/{device_id:str}/retire",
        guards=[require("retire devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire(request: PageRequest, device_id: FromPath[str], data: FormData) -> Response[Any]:
        acts.retire_device(by(request), device_id, read_text_field(data, "reason"))
        return redirect(f"/devices/{device_id}")

    @post(
        "/devices/{device_id:str}/profiling",
        guards=[require("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def set_profiling(request: PageRequest, device_id: FromPath[str], data: FormData) -> Response[Any]:
        acts.set_profiling(by(request), device_id, profiling=read_text_field(data, "profiling") == "yes")
        return redirect(f"/devices/{device_id}")

    @post(
        "/access/invite",
        guards=[require("invite devices")],
        sync_to_thread=True,
        status_code=200,
    )
    def invite(request: PageRequest, data: FormData) -> Response[str]:
        asked = CreateEnrolmentTokens(
            read_text_field(data, "device_class"),
            labels_of(read_text_field(data, "labels")),
            read_text_field(data, "channel"),
            read_text_field(data, "profiling") == "yes",
            parse_number(data, "hours", least=0.1, most=24 * 90) * _HOUR_SECONDS,
        )
        (secret,) = acts.create_enrolment_tokens(by(request), asked)
        server = pages.address or f"{request.url.scheme}://{request.url.netloc}"
        rest = "--root 1.root.json --state edgewright-device"
        command = f"edgewright device enrol --server {server} --token {secret} {rest}"
        return access_page(pages, request, what="An invitation for one device", secret=secret, command=command)

    @post(
        "/access/tokens",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def add_token(request: PageRequest, data: FormData) -> Response[str]:
        days = parse_number(data, "days", least=1, most=366)
        secret = acts.create_token(
            by(request),
            CreateToken(read_text_field(data, "name"), read_text_field(data, "role"), days * _DAY_SECONDS),
        )
        return access_page(pages, request, what=f"Token {read_text_field(data, 'name')}", secret=secret, command="")

    @post(
        "/access/tokens/{name:str}/retire",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_token(request: PageRequest, name: FromPath[str]) -> Response[Any]:
        acts.revoke_token(by(request), name)
        return redirect("/access")

    @post(
        "/access/users",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def add_user(request: PageRequest, data: FormData) -> Response[Any]:
        acts.create_user(
            by(request),
            CreateUser(read_text_field(data, "name"), read_text_field(data, "role"), data.get("password", "")),
        )
        return redirect("/access")

    @post(
        "/access/users/{name:str}/retire",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
    )
    def retire_user(request: PageRequest, name: FromPath[str]) -> Response[Any]:
        acts.deactivate_user(by(request), name)
        return redirect("/access")

    return [
        *(changing(act) for act in _RIGHTS),
        *(settling(verdict) for verdict in ("approve", "refuse")),
        silence,
        retire,
        set_profiling,
        invite,
        add_token,
        retire_token,
        add_user,
        retire_user,
    ]
