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
    CreatedResource,
    CreatedSecrets,
    CreateEnrolmentTokens,
    CreateQuery,
    CreateToken,
    CreateUser,
    ReasonBody,
    RolloutAction,
    SetProfiling,
    SilenceAlert,
    StartRollout,
)
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.server import read_models
from edgewright.server.access_control import Permission
from edgewright.server.auth.authentication import Principal, require
from edgewright.server.commands.acts import FleetCommands, OperatorCommands
from edgewright.server.controller.signed_plans import all_plans
from edgewright.server.profiling_jobs import cancel_profiling_job
from edgewright.server.read_models import (
    AlertSummary,
    ArmSummary,
    DecisionSummary,
    DeviceSummary,
    FleetSummary,
    JobSummary,
    PendingAction,
    QuerySummary,
)
from edgewright.server.services import Services
from edgewright.server.store.records import (
    AlertChange,
    ApiToken,
    AuditEntry,
    EnrolmentToken,
    JobState,
    QueryState,
    StoredAlertState,
    UserAccount,
)

__all__ = ["operator_router"]

_Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Most that are returned.")]
_After = Annotated[str, QueryParameter(max_length=64, description="Name of the last one of the page before.")]
_Text = Annotated[str, QueryParameter(max_length=200)]
_Name = Annotated[str, PathParameter(min_length=1, max_length=200)]
_Number = Annotated[int, PathParameter(ge=1, le=1 << 62)]
_Request = Request[Principal, Any, Any]


def operator_router(services: Services, commands: FleetCommands) -> Router:
    """Return the operator side.

    Args:
        services: What it works with.
        commands: What changes the fleet.
    """
    store = services.store
    acts = OperatorCommands(services, commands)

    @get("/fleet", guards=[require("look")], sync_to_thread=True, summary="The fleet at a glance")
    def fleet() -> FleetSummary:
        return read_models.fleet_summary(services)

    @get("/devices", guards=[require("look")], sync_to_thread=True, summary="Devices, page by page")
    def devices(
        after: _After = "",
        limit: _Limit = 100,
        device_class: _Text = "",
        version: Annotated[str | None, QueryParameter(max_length=200)] = None,
        label: Annotated[
            list[str] | None, QueryParameter(max_items=16, description="NAME=VALUE; repeatable.")
        ] = None,
        offline: Annotated[
            float | None, QueryParameter(ge=0, description="Seconds since the last check-in.")
        ] = None,
        profiling: FromQuery[bool | None] = None,
        retired: FromQuery[bool] = False,
    ) -> list[DeviceSummary]:
        labels = dict(each.partition("=")[::2] for each in label or ())
        found = store.devices.list_devices(
            after=after,
            limit=limit,
            device_class=device_class,
            version=version,
            labels=labels,
            offline_since=None if offline is None else services.now() - offline,
            profiling=profiling,
            retired=retired,
        )
        return [read_models.device_summary(each) for each in found]

    @get("/devices/{device_id:str}", guards=[require("look")], sync_to_thread=True, summary="One device")
    def device(device_id: _Name) -> DeviceSummary:
        found = store.devices.get(device_id)
        if found is None:
            raise NotFoundException(f"there is no device {device_id[:80]!r}")
        return read_models.device_summary(found)

    @post(
        "/devices/{device_id:str}/retire",
        guards=[require("retire devices")],
        sync_to_thread=True,
        status_code=200,
        summary="Believe a device no more",
    )
    def retire(request: _Request, device_id: _Name, data: JSONBody[ReasonBody]) -> CreatedResource:
        acts.retire_device(request.user.name, device_id, data.reason)
        return CreatedResource(device_id, ("It may be believed for a minute more.",))

    @post(
        "/devices/{device_id:str}/profiling",
        guards=[require("invite devices")],
        sync_to_thread=True,
        status_code=200,
        summary="Have a device take profiling jobs, or not",
    )
    def set_profiling(request: _Request, device_id: _Name, data: JSONBody[SetProfiling]) -> CreatedResource:
        acts.set_profiling(request.user.name, device_id, profiling=data.profiling)
        return CreatedResource(device_id)

    @get("/invitations", guards=[require("look")], sync_to_thread=True, summary="Tokens that devices may still use")
    def invitations() -> list[EnrolmentToken]:
        return store.devices.open_enrolment_tokens(now=services.now())

    @post(
        "/invitations", guards=[require("invite devices")], sync_to_thread=True, summary="Tokens to enrol devices"
    )
    def invite(request: _Request, data: JSONBody[CreateEnrolmentTokens]) -> CreatedSecrets:
        return CreatedSecrets(acts.create_enrolment_tokens(request.user.name, data))

    @get("/releases", guards=[require("look")], sync_to_thread=True, summary="Models and their versions")
    def models() -> dict[str, list[str]]:
        return read_models.list_models(services)

    @get(
        "/releases/{model:str}/{version:str}", guards=[require("look")], sync_to_thread=True, summary="One release"
    )
    def release(model: _Name, version: _Name) -> Manifest:
        return read_models.find_release(services, model, version)

    @get("/rollouts", guards=[require("look")], sync_to_thread=True, summary="Rollouts, as they are signed")
    def rollouts() -> list[RolloutPlan]:
        return all_plans(services)

    @post("/rollouts", guards=[require("start rollouts")], sync_to_thread=True, summary="Begin a rollout")
    def start(request: _Request, data: JSONBody[StartRollout]) -> CreatedResource:
        plan, notes = commands.start_rollout(request.user.name, data)
        return CreatedResource(plan.rollout, notes)

    @get(
        "/rollouts/{model:str}/{device_class:str}",
        guards=[require("look")],
        sync_to_thread=True,
        summary="One rollout",
    )
    def rollout(model: _Name, device_class: _Name) -> RolloutPlan:
        return read_models.find_plan(services, model, device_class)

    @get(
        "/policies/{model:str}/{device_class:str}",
        guards=[require("look")],
        sync_to_thread=True,
        summary="What the offline keys allow",
    )
    def policy(model: _Name, device_class: _Name) -> RolloutPolicy:
        return read_models.find_policy(services, model, device_class)

    def changing(act: RolloutAction, right: Permission, summary: str) -> Any:
        @post(
            f"/rollouts/{{model:str}}/{{device_class:str}}/{act}",
            guards=[require(right)],
            sync_to_thread=True,
            status_code=200,
            summary=summary,
            operation_id=f"{act}_rollout",
        )
        def change(request: _Request, model: _Name, device_class: _Name, data: JSONBody[ReasonBody]) -> RolloutPlan:
            return commands.change_rollout(request.user.name, model, device_class, act, data.reason)

        return change

    @get("/decisions", guards=[require("look")], sync_to_thread=True, summary="Decisions, the newest first")
    def decisions(subject: _Text = "", limit: _Limit = 100) -> list[DecisionSummary]:
        return read_models.list_decisions(services, subject, limit)

    @get(
        "/decisions/{model:str}/{device_class:str}/{rollout_name:str}/{number:int}",
        guards=[require("look")],
        sync_to_thread=True,
        summary="One decision with all that it was made from",
    )
    def decision(model: _Name, device_class: _Name, rollout_name: _Name, number: _Number) -> dict[str, Any]:
        return read_models.find_decision(services, f"{model}/{device_class}/{rollout_name}", number)

    @get("/alerts", guards=[require("look")], sync_to_thread=True, summary="Alerts")
    def alerts(alert_state: FromQuery[StoredAlertState | None] = None) -> list[AlertSummary]:
        return [read_models.alert_summary(each) for each in store.alerts.all(alert_state)]

    @get("/alerts/changes", guards=[require("look")], sync_to_thread=True, summary="When alerts began and ended")
    def alert_changes(limit: _Limit = 100) -> list[AlertChange]:
        return store.alerts.changes(limit=limit)

    @post(
        "/alerts/silence",
        guards=[require("silence alerts")],
        sync_to_thread=True,
        status_code=200,
        summary="Tell nobody of an alert for a while",
    )
    def silence(request: _Request, data: JSONBody[SilenceAlert]) -> CreatedResource:
        acts.silence_alert(request.user.name, data)
        return CreatedResource(data.rule)

    @get("/approvals", guards=[require("look")], sync_to_thread=True, summary="Actions that wait for approval")
    def approvals() -> list[PendingAction]:
        return list(commands.pending_actions())

    @post(
        "/approvals/{item:str}/{verdict:str}",
        guards=[require("approve actions")],
        sync_to_thread=True,
        status_code=200,
        summary="Approve or refuse an action",
    )
    def settle(request: _Request, item: _Name, verdict: _Name, data: JSONBody[ReasonBody]) -> CreatedResource:
        if verdict not in ("approve", "refuse"):
            raise NotFoundException(f"{verdict[:80]!r} is neither approve nor refuse")
        notes = commands.decide_action(request.user.name, item, approve=verdict == "approve", reason=data.reason)
        return CreatedResource(item, tuple(notes))

    @get("/queries", guards=[require("look")], sync_to_thread=True, summary="Questions to the fleet")
    def queries(query_state: FromQuery[QueryState | None] = None) -> list[QuerySummary]:
        return [read_models.query_summary(each) for each in store.queries.all(query_state)]

    @get("/queries/{query_id:str}", guards=[require("look")], sync_to_thread=True, summary="One question")
    def query(query_id: _Name) -> QuerySummary:
        found = store.queries.get(query_id)
        if found is None:
            raise NotFoundException(f"there is no query {query_id[:80]!r}")
        return read_models.query_summary(found)

    @post(
        "/queries/{model:str}/{device_class:str}",
        guards=[require("ask queries")],
        sync_to_thread=True,
        summary="Ask the fleet, within what the offline keys permit",
    )
    def ask(request: _Request, model: _Name, device_class: _Name, data: JSONBody[CreateQuery]) -> CreatedResource:
        return CreatedResource(data.id, commands.create_query(request.user.name, model, device_class, data))

    @delete(
        "/queries/{query_id:str}",
        guards=[require("ask queries")],
        sync_to_thread=True,
        status_code=200,
        summary="Ask a question no more",
    )
    def end_query(request: _Request, query_id: _Name) -> CreatedResource:
        commands.end_query(request.user.name, query_id)
        return CreatedResource(query_id)

    @get(
        "/cohorts/{model:str}/{device_class:str}",
        guards=[require("look")],
        sync_to_thread=True,
        summary="How many devices each arm of a rollout has, as they are assigned",
    )
    def cohorts(model: _Name, device_class: _Name) -> list[ArmSummary]:
        return read_models.arm_summaries(services, model, device_class)

    @get("/audit", guards=[require("look")], sync_to_thread=True, summary="Who did what, the newest first")
    def audit(
        before: Annotated[int, QueryParameter(ge=1, le=1 << 62)] = 1 << 62, limit: _Limit = 100
    ) -> list[AuditEntry]:
        return store.audit.entries(before=before, limit=limit)

    @get("/tokens", guards=[require("manage access")], sync_to_thread=True, summary="Tokens, without their secrets")
    def tokens() -> list[ApiToken]:
        return store.accounts.tokens()

    @post("/tokens", guards=[require("manage access")], sync_to_thread=True, summary="A token for a program")
    def add_token(request: _Request, data: JSONBody[CreateToken]) -> CreatedSecrets:
        return CreatedSecrets((acts.create_token(request.user.name, data),))

    @delete(
        "/tokens/{name:str}",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
        summary="Make a token void",
    )
    def retire_token(request: _Request, name: _Name) -> CreatedResource:
        acts.revoke_token(request.user.name, name)
        return CreatedResource(name)

    @get("/users", guards=[require("manage access")], sync_to_thread=True, summary="Who may log in")
    def users() -> list[UserAccount]:
        return store.accounts.users()

    @post("/users", guards=[require("manage access")], sync_to_thread=True, summary="Let somebody log in")
    def add_user(request: _Request, data: JSONBody[CreateUser]) -> CreatedResource:
        acts.create_user(request.user.name, data)
        return CreatedResource(data.name)

    @delete(
        "/users/{name:str}",
        guards=[require("manage access")],
        sync_to_thread=True,
        status_code=200,
        summary="Let somebody log in no more",
    )
    def retire_user(request: _Request, name: _Name) -> CreatedResource:
        acts.deactivate_user(request.user.name, name)
        return CreatedResource(name)

    @get("/jobs", guards=[require("look")], sync_to_thread=True, summary="Profiling jobs, the newest first")
    def jobs(job_state: FromQuery[JobState | None] = None, limit: _Limit = 100) -> list[JobSummary]:
        return [read_models.job_summary(each) for each in store.jobs.all(state=job_state, limit=limit)]

    @post(
        "/jobs",
        guards=[require("run jobs")],
        summary="Give a bench device a profiling job",
        request_max_body_size=65 << 20,
    )
    async def add_job(request: _Request, device: _Text) -> CreatedResource:
        body = await request.body()
        return CreatedResource(await asyncio.to_thread(commands.create_job, request.user.name, device, body))

    @get("/jobs/{job_id:str}", guards=[require("look")], sync_to_thread=True, summary="One profiling job")
    def job(job_id: _Name) -> JobSummary:
        found = store.jobs.get(job_id)
        if found is None:
            raise NotFoundException(f"there is no job {job_id[:80]!r}")
        return read_models.job_summary(found)

    @delete(
        "/jobs/{job_id:str}",
        guards=[require("run jobs")],
        sync_to_thread=True,
        status_code=200,
        summary="End a profiling job that nobody waits for",
    )
    def cancel(request: _Request, job_id: _Name) -> CreatedResource:
        over = not cancel_profiling_job(services, request.user.name, job_id)
        return CreatedResource(job_id, ("It was over already.",) if over else ())

    @get(
        "/jobs/{job_id:str}/result",
        guards=[require("look")],
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
            set_profiling,
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
