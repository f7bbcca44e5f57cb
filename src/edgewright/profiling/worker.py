"""What runs on the target: reads one request, measures, writes one JSON reply.

Needs Python 3.9, numpy and onnxruntime, nothing of edgewright: it is started as a script, here or over ssh,
with `power_meters.py` beside it. It ends when its standard input closes, so a lost connection leaves nothing
running. Every duration is in seconds, every size in bytes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

RequestFields = dict[str, Any]
ReplyFields = dict[str, Any]

MIN_ROUNDS = 6  # the fewest whose extremes are a 95 % interval of the median
MAX_RELOAD_TIME_SHARE = 0.4  # of the time, for loading models again during a latency measurement
MAX_SAMPLES = 4000  # returned per subject
MAX_SAMPLES_PER_ROUND = 500  # kept until then, so that a long measurement does not fill the memory
# As Linux names them for x86 and ARM.
_CPU_FEATURES: tuple[str, ...] = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_tile",
)
_CPU_FEATURES += ("neon", "asimd", "asimddp", "i8mm", "fphp", "asimdhp", "sve")
# ONNX model of one Identity of one float: what the runtime costs before there is any real model.
_IDENTITY_MODEL = bytes.fromhex(
    "08043a370a100a017812017922084964656e746974791201695a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001009"
)


def main(arguments: list[str]) -> int:
    """Serve the request whose path is the first argument."""
    # This folder holds names such as profile.py that must not shadow the standard library's.
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    # Whatever a library prints must not end up in the reply.
    reply_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    request = json.loads(Path(arguments[0]).read_text())
    os.chdir(Path(arguments[0]).resolve().parent)  # the request's paths are relative to it
    try:
        _apply_resource_limits(request.get("limits", {}))
        reply = _ACTIONS[request["action"]](request)
        reply["machine"] = describe_machine()
    except ImportError as error:
        reply = {"error": {"kind": "missing", "message": str(error)}}
    except MemoryError as error:
        reply = {"error": {"kind": "memory", "message": str(error) or "out of memory"}}
    except OSError as error:
        reply = {"error": {"kind": "disk" if error.errno == 28 else "system", "message": str(error)}}
    except Exception as error:
        reply = {"error": {"kind": "model", "message": f"{type(error).__name__}: {error}"}}
    reply_to.write(json.dumps(reply) + "\n")
    reply_to.flush()
    os._exit(0)  # sessions with many threads may take long to be destroyed


def _apply_resource_limits(limits: dict[str, int]) -> None:
    """Bound what this process and those that it starts may use, before it sees a model."""
    if not limits:
        return
    import resource

    # Memory that is written to, not address space, of which drivers and allocators reserve what they never use.
    for name in ("DATA", "CPU", "FSIZE", "CORE"):
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        least = limits[name] if hard == resource.RLIM_INFINITY else min(limits[name], hard)
        resource.setrlimit(kind, (least, least))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # when memory is short, nobody else is to be ended


def _exit_when_stdin_closes() -> None:
    while os.read(0, 4096):
        pass
    os._exit(75)


# --- the machine


def describe_machine() -> ReplyFields:
    """Describe the machine as far as it matters for inference."""
    onnxruntime = _import_onnxruntime()
    text = _read_text("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    board = _read_text("/proc/device-tree/model").rstrip("\0")
    memory = [line.split()[1] for line in _read_text("/proc/meminfo").splitlines() if line.startswith("MemTotal")]
    meters = _import_power_meters()
    return {
        "cpu": fields.get("model name") or board or fields.get("hardware") or platform.processor() or "unknown CPU",
        "cores": _usable_cores(),
        "arch": platform.machine(),
        "features": [name for name in _CPU_FEATURES if name in flags],
        "memory_bytes": int(memory[0]) * 1024 if memory else 0,
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "runtime": onnxruntime.__version__,
        "providers": list(onnxruntime.get_available_providers()),
        "runtime_bytes": _tree_bytes(Path(onnxruntime.__file__).parent / "capi"),
        "meters": [meter.name for meter in meters.select_meters(meters.find_meters())],
    }


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _import_power_meters() -> Any:
    spec = importlib.util.spec_from_file_location(
        "edgewright_power_meters", Path(__file__).with_name("power_meters.py")
    )
    if spec is None or spec.loader is None:
        raise FileNotFoundError("power_meters.py is missing beside worker.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["edgewright_power_meters"] = module
    spec.loader.exec_module(module)
    return module


# --- sessions


def _import_onnxruntime() -> Any:
    """Return onnxruntime, which is not to report to its maker, nor to spend time on that."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is loaded
    import onnxruntime

    return onnxruntime


def _session_options(fields: RequestFields) -> Any:
    """The same as `edgewright.runtime.options.session_options`, which a test holds it to."""
    onnxruntime = _import_onnxruntime()
    levels = {"disable": "DISABLE_ALL", "all": "ENABLE_ALL"}
    level = levels.get(fields["optimization"], "ENABLE_" + fields["optimization"].upper())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fields["threads"]
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, "ORT_" + level)
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if fields["spinning"] else "0")
    return options


def _open_workload(workload: RequestFields) -> tuple[Any, dict[str, Any]]:
    """Return a session and its feed."""
    return _open_session(workload), _load_inputs(workload)


def _open_session(workload: RequestFields) -> Any:
    return _import_onnxruntime().InferenceSession(
        workload["model"], _session_options(workload["options"]), providers=workload["options"]["providers"]
    )


def _warm_up_runtime() -> None:
    """Load the libraries and run a trivial model, so that no model is charged for that."""
    import numpy

    onnxruntime = _import_onnxruntime()
    session = onnxruntime.InferenceSession(_IDENTITY_MODEL, providers=["CPUExecutionProvider"])
    session.run(None, {"x": numpy.zeros(1, numpy.float32)})


def _load_inputs(workload: RequestFields) -> dict[str, Any]:
    import numpy

    with numpy.load(workload["inputs_file"], allow_pickle=False) as arrays:
        return {name: arrays[f"arr_{index}"] for index, name in enumerate(workload["input_names"])}


def _time_inferences(session: Any, inputs: dict[str, Any], count: int) -> list[float]:
    """Return the duration of each of `count` inferences."""
    run, clock = session.run, time.perf_counter
    durations = []
    for _ in range(count):
        start = clock()
        run(None, inputs)
        durations.append(clock() - start)
    return durations


def _time_inferences_for(session: Any, inputs: dict[str, Any], seconds: float) -> list[float]:
    """Return the duration of each inference that fits into a time, at least one."""
    until = time.perf_counter() + seconds
    durations = _time_inferences(session, inputs, 1)
    while time.perf_counter() < until:
        durations += _time_inferences(session, inputs, 1)
    return durations


# --- actions


class _LatencyRun:
    """One subject of a latency measurement, loaded."""

    def __init__(self, workload: RequestFields, cold_start_seconds: float) -> None:
        self.subject = workload
        self.inputs = _load_inputs(workload)
        self.session: Any = None
        self.cold: list[float] = []
        while not self.cold or (len(self.cold) < 3 and sum(self.cold) < cold_start_seconds):
            self.load()
        self.reloading_seconds = self.spent_seconds = 0.0
        self.spins = workload["options"]["spinning"] and workload["options"]["threads"] > 1
        self.medians: list[float] = []
        self.means: list[float] = []
        self.samples: list[list[float]] = []
        self.cpu_seconds = 0.0
        self.count = 0
        self.per_round = 1

    def load(self) -> None:
        """Create the session and run it once; the old one lives until then, so that the new one lies elsewhere."""
        start = time.perf_counter()
        session = _open_session(self.subject)
        session.run(None, self.inputs)
        self.cold.append(time.perf_counter() - start)
        self.session = session

    def reload(self, random_: random.Random) -> None:
        """Load again where that is cheap.

        Where a model happens to lie in memory makes it up to several per cent faster or slower for as long as its
        session lives, so one session alone would look more certain than it is.
        """
        if self.reloading_seconds + self.cold[-1] > MAX_RELOAD_TIME_SHARE * self.spent_seconds:
            return
        start = time.perf_counter()
        self.padding = bytearray(random_.randrange(1 << 21))
        self.inputs = {name: array.copy() for name, array in self.inputs.items()}
        self.load()
        _time_inferences(self.session, self.inputs, min(self.per_round, 10))
        self.reloading_seconds += time.perf_counter() - start

    def warm_up(self, seconds: float, slice_seconds: float) -> None:
        usual = statistics.median(_time_inferences_for(self.session, self.inputs, seconds))
        # At least three, so that one hiccup is not the round; but a slow model gets its rounds first.
        self.per_round = max(3 if usual < 4 * slice_seconds else 1, min(int(slice_seconds / usual), 2000))

    def measure(self, random_: random.Random) -> None:
        begun = time.perf_counter()
        self.reload(random_)
        if self.per_round > 3:
            self.session.run(None, self.inputs)  # brings its weights back into the caches
        start = time.process_time()
        durations = _time_inferences(self.session, self.inputs, self.per_round)
        self.cpu_seconds += time.process_time() - start
        self.count += len(durations)
        self.medians.append(statistics.median(durations))
        self.means.append(statistics.fmean(durations))
        many = len(durations) > MAX_SAMPLES_PER_ROUND
        self.samples.append(random_.sample(durations, MAX_SAMPLES_PER_ROUND) if many else durations)
        self.spent_seconds += time.perf_counter() - begun
        if self.spins:
            time.sleep(0.005)  # its threads spin on for a while and would slow down the next subject

    def reply(self, random_: random.Random) -> ReplyFields:
        samples = [[index, duration] for index, each in enumerate(self.samples) for duration in each]
        if len(samples) > MAX_SAMPLES:
            samples = sorted(random_.sample(samples, MAX_SAMPLES))
        return {
            "round_medians_seconds": self.medians,
            "means": self.means,
            "sample_rounds": [index for index, _ in samples],
            "samples": [duration for _, duration in samples],
            "count": self.count,
            "cold_starts_seconds": self.cold,
            "cpu_seconds": self.cpu_seconds / self.count,
        }


def run_latency(request: RequestFields) -> ReplyFields:
    """Time several models in turns, in an order that is new in every round."""
    random_ = random.Random(request["seed"])  # noqa: S311 (an order, not a secret)
    subjects, seconds = request["workloads"], request["seconds"]
    share = seconds / len(subjects)
    _warm_up_runtime()
    replies: list[ReplyFields] = [{} for _ in subjects]
    runners: dict[int, _LatencyRun] = {}
    for index, subject in enumerate(subjects):
        try:
            runners[index] = _LatencyRun(subject, 0.1 * share)
            runners[index].warm_up(min(0.1 * share, 0.5), min(max(share / 40, 0.002), 0.05))
        except Exception as error:
            runners.pop(index, None)
            replies[index] = {"error": f"{type(error).__name__}: {error}"}
    order = list(runners)
    start = time.perf_counter()
    rounds = 0
    while order:
        elapsed = time.perf_counter() - start
        if elapsed >= (0.85 * seconds if rounds >= MIN_ROUNDS else 10 * seconds + 30):
            break
        random_.shuffle(order)
        for index in order:
            runners[index].measure(random_)
        rounds += 1
    for index, runner in runners.items():
        replies[index] = runner.reply(random_)
    return {"workloads": replies}


def run_memory(request: RequestFields) -> ReplyFields:
    """Measure the resident memory of this process around loading and running one model."""
    subject = request["workloads"][0]
    _warm_up_runtime()
    feed = _load_inputs(subject)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    runtime = _process_memory("VmRSS")
    session = _open_session(subject)
    loaded = _process_memory("VmRSS")
    for _ in range(5):
        session.run(None, feed)
    return {"runtime": runtime, "loaded": loaded, "peak": _process_memory("VmHWM")}


def _process_memory(key: str) -> int:
    for line in _read_text("/proc/self/status").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status does not show {key} on this system")


def run_sustained(request: RequestFields) -> ReplyFields:
    """Run one model without a pause and show latency, clock and temperature per time slice."""
    session, feed = _open_workload(request["workloads"][0])
    session.run(None, feed)
    slices = []
    start = time.perf_counter()
    while time.perf_counter() - start < request["seconds"]:
        durations = _time_inferences_for(session, feed, request["seconds"] / 20)
        slices.append(
            {
                "end_seconds": time.perf_counter() - start,
                "median_latency_seconds": statistics.median(durations),
                "clock_hz": _max_clock_hz(),
                "temperature_celsius": _max_temperature_celsius(),
            }
        )
    return {"slices": slices}


def _max_clock_hz() -> float | None:
    clocks = [
        float(_read_text(str(path)) or 0) * 1e3
        for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq")
    ]
    if not clocks:
        lines = _read_text("/proc/cpuinfo").splitlines()
        clocks = [float(line.partition(":")[2]) * 1e6 for line in lines if line.lower().startswith("cpu mhz")]
    return max(clocks) if clocks else None


def _max_temperature_celsius() -> float | None:
    shown = []
    for path in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        with contextlib.suppress(ValueError):
            shown.append(float(_read_text(str(path))) / 1e3)
    return max(shown) if shown else None


_BUSY_LOOP_SCRIPT = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(200_000): pass
"""
_DISK_WRITER_SCRIPT = """
import os, sys, tempfile
parent, block = os.getppid(), os.urandom(1 << 20)
with tempfile.TemporaryFile(dir=sys.argv[1]) as file:
    while os.getppid() == parent:
        file.seek(0)
        for _ in range(8): file.write(block)
        file.flush(); os.fsync(file.fileno())
"""


@contextlib.contextmanager
def _background_load(kind: str, folder: str) -> Iterator[None]:
    """Keep the machine busy with processes that also end when this one is killed."""
    source, count = {"idle": ("", 0), "cpu": (_BUSY_LOOP_SCRIPT, _usable_cores()), "io": (_DISK_WRITER_SCRIPT, 2)}[
        kind
    ]
    quiet = subprocess.DEVNULL
    busy: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-c", source, folder]
            busy.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))
        time.sleep(0.2 if count else 0.0)  # until they are at work
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def run_contention(request: RequestFields) -> ReplyFields:
    """Time one model on an idle machine, with every core busy, and with writers to the disk."""
    session, feed = _open_workload(request["workloads"][0])
    session.run(None, feed)
    durations: dict[str, list[float]] = {"idle": [], "cpu": [], "io": []}
    for kind in ("idle", "cpu", "io") * 2:
        with _background_load(kind, str(Path.cwd())):
            durations[kind] += _time_inferences_for(session, feed, request["seconds"] / 6)
    return {
        "durations": {kind: each[:: len(each) // MAX_SAMPLES + 1] for kind, each in durations.items()},
        "means": {kind: statistics.fmean(each) for kind, each in durations.items()},
    }


def run_energy(request: RequestFields) -> ReplyFields:
    """Read the meters around idling and around running one model, in turns."""
    meters = _import_power_meters()
    chosen = meters.select_meters(meters.find_meters(Path(request.get("sysfs", "/sys"))))
    session, feed = _open_workload(request["workloads"][0])
    session.run(None, feed)
    part_seconds = request["seconds"] / 10
    pairs = []
    for _ in range(5 if chosen else 0):
        idle_j, idle_seconds, _ = _measure_joules(meters, chosen, part_seconds, lambda: time.sleep(0.01))
        busy_j, busy_seconds, count = _measure_joules(meters, chosen, part_seconds, lambda: session.run(None, feed))
        pairs.append(
            {
                "idle_watts": idle_j / idle_seconds,
                "busy_joules": busy_j,
                "busy_seconds": busy_seconds,
                "inferences": count,
            }
        )
    return {"meters": [f"{meter.kind} {meter.name}" for meter in chosen], "pairs": pairs}


def _measure_joules(
    meters: Any, selected: list[Any], seconds: float, step: Callable[[], Any]
) -> tuple[float, float, int]:
    """Return joules, seconds and steps of repeating `step`; power is sampled every 20 ms."""
    start = last = time.perf_counter()
    readings = [meters.read_meter(meter) for meter in selected]
    joules, steps = 0.0, 0
    while last - start < seconds:
        while time.perf_counter() - last < 0.02:
            step()
            steps += 1
        now = time.perf_counter()
        for index, meter in enumerate(selected):
            reading = meters.read_meter(meter)
            joules += meters.joules_between(meter, readings[index], reading, now - last)
            readings[index] = reading
        last = now
    return joules, last - start, steps


def run_probe(request: RequestFields) -> ReplyFields:
    """Load one model and run it once."""
    session, feed = _open_workload(request["workloads"][0])
    session.run(None, feed)
    return {}


_ACTIONS: dict[str, Callable[[RequestFields], ReplyFields]] = {
    "machine": lambda _: {},
    "latency": run_latency,
    "memory": run_memory,
    "sustained": run_sustained,
    "contention": run_contention,
    "energy": run_energy,
    "probe": run_probe,
}

if __name__ == "__main__":
    main(sys.argv[1:])
