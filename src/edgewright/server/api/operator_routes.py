"""The operator side: what people and their programs see and do, under /api/. Handlers here are thin.

Each route names the right that it takes; a test makes the table of roles and routes from them.
"""

import asyncio
from typing import Annotated, Any

from litestar import Response, Router, delete, get, post
from litestar.connection import Request
from litestar.exceptions import NotFoundException
from litestar.params import FromQuery, JSONBody, PathParameter, QueryParameter

from edgewright.contract.api.operator_api import (
    AskQuery,
    Because,
    Bench,
    Invite,
    Made,
    NewToken,
    NewUser,
    RolloutAct,
    Secret,
    Silencing,
    StartRollout,
)
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.server import read_models
from edgewright.server.access_control import Right
from edgewright.server.auth.authentication import Who, guard
from edgewright.server.commands.acts import Acting, Acts
from edgewright.server.controller.signed_plans import all_plans
from edgewright.server.profiling_jobs import cancel_job
from edgewright.server.read_models import (
    AlertShown,
    Awaiting,
    CohortShown,
    DecisionShown,
    DeviceShown,
    FleetShown,
    JobShown,
    QueryShown,
)
from edgewright.server.services import Services
from edgewright.server.store.records import (
    AlertChange,
    AlertState,
    AuditEntry,
    Invited,
    JobState,
    QueryState,
    Token,
    User,
)

__all__ = ["operator_router"]

_Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Most that are returned.")]
_After = Annotated[str, QueryParameter(max_length=64, description="Name of the last one of the page before.")]
_Text = Annotated[str, QueryParameter(max_length=200)]
_Name = Annotated[str, PathParameter(min_length=1, max_length=200)]
_Number = Annotated[int, PathParameter(ge=1, le=1 << 62)]
_Request = Request[Who, Any, Any]


def operator_router(services: Services, acting: Acting) -> Router:
    """Return the operator side.

    Args:
        services: What it works with.
        acting: What changes the fleet.
    """
    store = services.store
    acts = Acts(services, acting)

    @get("/fleet", guards=[guard("look")], sync_to_thread=True, summary="The fleet at a glance")
    def fleet() -> FleetShown:
        return read_models.overview(services)

    @get("/devices", guards=[guard("look")], sync_to_thread=True, summary="Devices, page by page")
    def devices(
        after: _After = "",
        limit: _Limit = 100,
        device_class: _Text = "",
        version: Annotated[str | None, QueryParameter(max_length=200)] = None,
        label: Annotated[
            list[str] | None, QueryParameter(max_items=16, description="NAME=VALUE; repeatable.")
        ] = None,
        silent: Annotated[
            float | None, QueryParameter(ge=0, description="Seconds since the last check-in.")
        ] = None,
        bench: FromQuery[bool | None] = None,
        retired: FromQuery[bool] = False,
    ) -> list[DeviceShown]:
        labels = dict(each.partition("=")[::2] for each in label or ())
        found = store.devices.page(
            after=after,
            limit=limit,
            device_class=device_class,
            version=version,
            labels=labels,
            silent_since_s=None if silent is None else services.now() - silent,
            bench=bench,
            retired=retired,
        )
        return [read_models.shown_device(each) for each in found]

    @get("/devices/{device_id:str}", guards=[guard("look")], sync_to_thread=True, summary="One device")
    def device(device_id: _Name) -> DeviceShown:
        found = store.devices.get(device_id)
        if found is None:
            raise NotFoundException(f"there is no device {device_id[:80]!r}")
        return read_models.shown_device(found)

    @post(
        "/devices/{device_id:str}/retire",
        guards=[guard("retire devices")],
        sync_to_thread=True,
        status_code=200,
        summary="Believe a device no more",
    )
    def retire(request: _Request, device_id: _Name, data: JSONBody[Because]) -> Made:
        acts.retire_device(request.user.name, device_id, data.reason)
        return Made(device_id, ("It may be believed for a minute more.",))

    @post(
        "/devices/{device_id:str}/bench",
        guards=[guard("invite devices")],
        sync_to_thread=True,
        status_code=200,
        summary="Have a device take profiling jobs, or not",
    )
    def bench_device(request: _Request, device_id: _Name, data: JSONBody[Bench]) -> Made:
        acts.mark_bench(request.user.name, device_id, bench=data.bench)
        return Made(device_id)

    @get("/invitations", guards=[guard("look")], sync_to_thread=True, summary="Tokens that devices may still use")
    def invitations() -> list[Invited]:
        return store.devices.invited(now_s=services.now())

    @post("/invitations", guards=[guard("invite devices")], sync_to_thread=True, summary="Tokens to enrol devices")
    def invite(request: _Request, data: JSONBody[Invite]) -> Secret:
        return Secret(acts.invite(request.user.name, data))

    @get("/releases", guards=[guard("look")], sync_to_thread=True, summary="Models and their versions")
    def models() -> dict[str, list[str]]:
        return read_models.models(services)

    @get("/releases/{model:str}/{version:str}", guards=[guard("look")], sync_to_thread=True, summary="One release")
    def release(model: _Name, version: _Name) -> Manifest:
        return read_models.release(services, model, version)

    @get("/rollouts", guards=[guard("look")], sync_to_thread=True, summary="Rollouts, as they are signed")
    def rollouts() -> list[Plan]:
        return all_plans(services)

    @post("/rollouts", guards=[guard("start rollouts")], sync_to_thread=True, summary="Begin a rollout")
    def start(request: _Request, data: JSONBody[StartRollout]) -> Made:
        plan, notes = acting.start(request.user.name, data)
        return Made(plan.rollout, notes)

    @get(
        "/rollouts/{model:str}/{device_class:str}",
        guards=[guard("look")],
        sync_to_thread=True,
        summary="One rollout",
    )
    def rollout(model: _Name, device_class: _Name) -> Plan:
        return read_models.plan(services, model, device_class)

    @get(
        "/policies/{model:str}/{device_class:str}",
        guards=[guard("look")],
        sync_to_thread=True,
        summary="What the offline keys allow",
    )
    def policy(model: _Name, device_class: _Name) -> Policy:
        return read_models.policy(services, model, device_class)

    def changing(act: RolloutAct, right: Right, summary: str) -> Any:
        @post(
            f"/rollouts/{{model:str}}/{{device_class:str}}/{act}",
            guards=[guard(right)],
            sync_to_thread=True,
            status_code=200,
            summary=summary,
            operation_id=f"{act}_rollout",
        )
        def change(request: _Request, model: _Name, device_class: _Name, data: JSONBody[Because]) -> Plan:
            return acting.change(request.user.name, model, device_class, act, data.reason)

        return change

    @get("/decisions", guards=[guard("look")], sync_to_thread=True, summary="Decisions, the newest first")
    def decisions(subject: _Text = "", limit: _Limit = 100) -> list[DecisionShown]:
        return read_models.decisions(services, subject, limit)

    @get(
        "/decisions/{model:str}/{device_class:str}/{rollout_name:str}/{number:int}",
        guards=[guard("look")],
        sync_to_thread=True,
        summary="One decision with all that it was made from",
    )
    def decision(model: _Name, device_class: _Name, rollout_name: _Name, number: _Number) -> dict[str, Any]:
        return read_models.decision(services, f"{model}/{device_class}/{rollout_name}", number)

    @get("/alerts", guards=[guard("look")], sync_to_thread=True, summary="Alerts")
    def alerts(alert_state: FromQuery[AlertState | None] = None) -> list[AlertShown]:
        return [read_models.shown_alert(each) for each in store.alerts.all(alert_state)]

    @get("/alerts/changes", guards=[guard("look")], sync_to_thread=True, summary="When alerts began and ended")
    def alert_changes(limit: _Limit = 100) -> list[AlertChange]:
        return store.alerts.changes(limit=limit)

    @post(
        "/alerts/silence",
        guards=[guard("silence alerts")],
        sync_to_thread=True,
        status_code=200,
        summary="Tell nobody of an alert for a while",
    )
    def silence(request: _Request, data: JSONBody[Silencing]) -> Made:
        acts.silence(request.user.name, data)
        return Made(data.rule)

    @get("/approvals", guards=[guard("look")], sync_to_thread=True, summary="Actions that wait for approval")
    def approvals() -> list[Awaiting]:
        return list(acting.awaiting())

    @post(
        "/approvals/{item:str}/{verdict:str}",
        guards=[guard("approve actions")],
        sync_to_thread=True,
        status_code=200,
        summary="Approve or refuse an action",
    )
    def settle(request: _Request, item: _Name, verdict: _Name, data: JSONBody[Because]) -> Made:
        if verdict not in ("approve", "refuse"):
            raise NotFoundException(f"{verdict[:80]!r} is neither approve nor refuse")
        notes = acting.settle(request.user.name, item, approve=verdict == "approve", reason=data.reason)
        return Made(item, tuple(notes))

    @get("/queries", guards=[guard("look")], sync_to_thread=True, summary="Questions to the fleet")
    def queries(query_state: FromQuery[QueryState | None] = None) -> list[QueryShown]:
        return [read_models.shown_query(each) for each in store.sums.all(query_state)]

    @get("/queries/{query_id:str}", guards=[guard("look")], sync_to_thread=True, summary="One question")
    def query(query_id: _Name) -> QueryShown:
        found = store.sums.get(query_id)
        if found is None:
            raise NotFoundException(f"there is no query {query_id[:80]!r}")
        return read_models.shown_query(found)

    @post(
        "/queries/{model:str}/{device_class:str}",
        guards=[guard("ask queries")],
        sync_to_thread=True,
        summary="Ask the fleet, within what the offline keys permit",
    )
    def ask(request: _Request, model: _Name, device_class: _Name, data: JSONBody[AskQuery]) -> Made:
        return Made(data.id, acting.ask(request.user.name, model, device_class, data))

    @delete(
        "/queries/{query_id:str}",
        guards=[guard("ask queries")],
        sync_to_thread=True,
        status_code=200,
        summary="Ask a question no more",
    )
    def end_query(request: _Request, query_id: _Name) -> Made:
        acting.end_query(request.user.name, query_id)
        return Made(query_id)

    @get(
        "/cohorts/{model:str}/{device_class:str}",
        guards=[guard("look")],
        sync_to_thread=True,
        summary="How many devices each arm of a rollout has, as they are assigned",
    )
    def cohorts(model: _Name, device_class: _Name) -> list[CohortShown]:
        return read_models.cohorts(services, model, device_class)

    @get("/audit", guards=[guard("look")], sync_to_thread=True, summary="Who did what, the newest first")
    def audit(
        before: Annotated[int, QueryParameter(ge=1, le=1 << 62)] = 1 << 62, limit: _Limit = 100
    ) -> list[AuditEntry]:
        return store.audit.page(before=before, limit=limit)

    @get("/tokens", guards=[guard("manage access")], sync_to_thread=True, summary="Tokens, without their secrets")
    def tokens() -> list[Token]:
        return store.people.tokens()

    @post("/tokens", guards=[guard("manage access")], sync_to_thread=True, summary="A token for a program")
    def add_token(request: _Request, data: JSONBody[NewToken]) -> Secret:
        return Secret((acts.add_token(request.user.name, data),))

    @delete(
        "/tokens/{name:str}",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
        summary="Make a token void",
    )
    def retire_token(request: _Request, name: _Name) -> Made:
        acts.retire_token(request.user.name, name)
        return Made(name)

    @get("/users", guards=[guard("manage access")], sync_to_thread=True, summary="Who may log in")
    def users() -> list[User]:
        return store.people.users()

    @post("/users", guards=[guard("manage access")], sync_to_thread=True, summary="Let somebody log in")
    def add_user(request: _Request, data: JSONBody[NewUser]) -> Made:
        acts.add_user(request.user.name, data)
        return Made(data.name)

    @delete(
        "/users/{name:str}",
        guards=[guard("manage access")],
        sync_to_thread=True,
        status_code=200,
        summary="Let somebody log in no more",
    )
    def retire_user(request: _Request, name: _Name) -> Made:
        acts.retire_user(request.user.name, name)
        return Made(name)

    @get("/jobs", guards=[guard("look")], sync_to_thread=True, summary="Profiling jobs, the newest first")
    def jobs(job_state: FromQuery[JobState | None] = None, limit: _Limit = 100) -> list[JobShown]:
        return [read_models.shown_job(each) for each in store.jobs.all(state=job_state, limit=limit)]

    @post(
        "/jobs",
        guards=[guard("run jobs")],
        summary="Give a bench device a profiling job",
        request_max_body_size=65 << 20,
    )
    async def add_job(request: _Request, device: _Text) -> Made:
        body = await request.body()
        return Made(await asyncio.to_thread(acting.add_job, request.user.name, device, body))

    @get("/jobs/{job_id:str}", guards=[guard("look")], sync_to_thread=True, summary="One profiling job")
    def job(job_id: _Name) -> JobShown:
        found = store.jobs.get(job_id)
        if found is None:
            raise NotFoundException(f"there is no job {job_id[:80]!r}")
        return read_models.shown_job(found)

    @delete(
        "/jobs/{job_id:str}",
        guards=[guard("run jobs")],
        sync_to_thread=True,
        status_code=200,
        summary="End a profiling job that nobody waits for",
    )
    def cancel(request: _Request, job_id: _Name) -> Made:
        over = not cancel_job(services, request.user.name, job_id)
        return Made(job_id, ("It was over already.",) if over else ())

    @get(
        "/jobs/{job_id:str}/result",
        guards=[guard("look")],
        sync_to_thread=True,
        media_type="application/octet-stream",
        summary="What came of a profiling job",
    )
    def job_result(job_id: _Name) -> Response[bytes]:
        found = store.jobs.get(job_id)
        if found is None or found.result is None:
            raise NotFoundException(f"there is no result of job {job_id[:80]!r}")
        return Response(found.result, media_type="application/octet-stream")

    return Router(
        "/api",
        route_handlers=[
            fleet,
            devices,
            device,
            retire,
            bench_device,
            invitations,
            invite,
            models,
            release,
            rollouts,
            start,
            rollout,
            policy,
            changing("advance", "advance rollouts", "Go to the next stage"),
            changing("pause", "pause rollouts", "Let no device begin an installation"),
            changing("resume", "advance rollouts", "Go on after a pause"),
            changing("abort", "roll back", "Have devices on trial return to their proven model"),
            decisions,
            decision,
            alerts,
            alert_changes,
            silence,
            approvals,
            settle,
            queries,
            query,
            ask,
            end_query,
            cohorts,
            audit,
            tokens,
            add_token,
            retire_token,
            users,
            add_user,
            retire_user,
            jobs,
            add_job,
            job,
            cancel,
            job_result,
        ],
    )
