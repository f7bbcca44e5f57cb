"""What private sums cost: CPU, bytes and memory of devices, of the server and of the helper.

    python benchmarks/sums.py            everything; writes benchmarks/results/sums.json
    python benchmarks/sums.py --quick    a smoke run of less than a minute, without the peer
    python benchmarks/sums.py --only helper

Times are medians, their intervals quartiles.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import msgspec
from benchmarks.environments import PEERS, environment, timed
from benchmarks.parts import run_parts
from benchmarks.report import Figure, Interval
from benchmarks.shipping.memory import resident_mb
from benchmarks.summing.asked import NOW_SECONDS, Gift, question
from benchmarks.summing.helped import helped_cost
from benchmarks.summing.neighbours import (
    NEIGHBOUR_DEGREE,
    THRESHOLD,
    cpu_ms,
    device_cost,
    leave_for_masking,
    server_cost,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

NAME = "sums"
PACKAGES = ("edgewright", "cryptography", "msgspec", "numpy")
PARAMETERS, CLIENTS, DROPOUTS = 1_000_000, 100, 10
SIGNALS, BINS = 20, 16
PEER = "Flower SecAgg+"

_LIGHT = """
for name in ("onnxruntime", "onnx", "scipy", "torch", "dp_accounting", "opendp", "Crypto"):
    assert name not in sys.modules, name
"""
# A histogram's one message, with all that a device loads for it.
_GIVES = f"""
import sys
from pathlib import Path
import msgspec
import numpy as np
import edgewright.device.queries.responder
from edgewright.contract.query.query import DeviceQueryLimits, Query, QueryTemplate
from edgewright.device.filesystem import FileSystem
from edgewright.device.queries.ledger_file import LedgerFile
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.helper import submit
from edgewright.privacy.private_sum import contribution
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
folder = Path(sys.argv[1])
query, template = msgspec.json.decode((folder / "asked").read_bytes(), type=tuple[Query, QueryTemplate])
key, helper = Ed25519PrivateKey.generate(), X25519PrivateKey.generate().public_key().public_bytes_raw()
noised = contribution(np.ones(template.values), template, query)
ledger = LedgerFile(folder, FileSystem(), DeviceQueryLimits())
assert ledger.debit(query, template, noised.tobytes(), now={NOW_SECONDS}) is None
submit(protocol_terms(query, template), helper, noised, key.public_key().public_bytes_raw(), key.sign)
{_LIGHT}
"""
# A long vector: turned, clipped, rounded, noised where it is.
_ENCODES = f"""
import sys
from pathlib import Path
import msgspec
import numpy as np
import edgewright.device.queries.responder
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.privacy.private_sum import contribution
query, template = msgspec.json.decode(Path(sys.argv[1], "asked").read_bytes(), type=tuple[Query, QueryTemplate])
noised = contribution(np.ones(template.values, np.float32), template, query, overwrite=True)
{_LIGHT}
"""
# The largest step of a sum without a helper, from what a device has stored.
_MASKS = f"""
import sys
from pathlib import Path
import msgspec
import numpy as np
import edgewright.device.queries.sum_client
from edgewright.privacy import secagg_client
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
member = msgspec.msgpack.decode(Path(sys.argv[1], "member").read_bytes(), type=secagg_client.ClientState)
values = np.zeros(member.terms.vector_length, np.uint16)
inbox = Path(sys.argv[1], "inbox").read_bytes()
masked = secagg_client.mask_values(member, inbox, values, Ed25519PrivateKey.generate().sign)
{_LIGHT}
"""


def _figure(name: str, value: Interval | float, limit: float | None, note: str, peer: str | None = None) -> Figure:
    shown = value if isinstance(value, Interval) else Interval.exact(value)
    return Figure(name, shown, limit, peer, limit is None or shown.value <= limit, note)


def _peer(figures: list[Figure], ours: dict[str, float], *, quick: bool) -> list[Figure]:
    """Add what Flower's functions take for the same in this run, and how many times more that is."""
    if quick:
        return figures
    command = [str(environment("flower")), str(PEERS / "flower_secagg.py")]
    sizes = [str(size) for size in (PARAMETERS, NEIGHBOUR_DEGREE, THRESHOLD, CLIENTS, DROPOUTS)]
    run = timed([*command, *sizes], timeout_seconds=900)
    if run.code:
        return [*figures, Figure("device.peer", None, None, PEER, False, run.error[-200:])]
    found = json.loads(run.stdout.splitlines()[-1])
    for name, (key, own, unit) in {
        "device.mask_to_peer": ("mask_cpu_seconds", ours.get("mask_seconds"), "s of CPU"),
        "device.bytes_to_peer": ("bytes", ours.get("bytes"), "bytes"),
        "server.unmask_to_peer": ("unmask_seconds", ours.get("unmask_seconds"), "s"),
    }.items():
        if own is not None:
            figures.append(_figure(name, own / found[key], 1.0, f"peer {found[key]:.4g} {unit}", PEER))
    return figures


def device(*, quick: bool) -> list[Figure]:
    """Masking a million parameters with 17 neighbours."""
    found = device_cost(
        20_000 if quick else PARAMETERS, devices=30 if quick else CLIENTS, repeats=3 if quick else 30
    )
    size = f"{NEIGHBOUR_DEGREE} neighbours, {THRESHOLD} shares unmask"
    figures = [
        _figure("device.mask_ms", found.mask_ms, 20, f"CPU: open shares, mask, pack, sign; {size}"),
        _figure(
            "device.bytes_up", found.bytes_up, 2.1e6, f"all four letters, 16 bits; {found.bytes_masked} of values"
        ),
        _figure("device.bytes_down", found.bytes_down, None, "roster, shares and survivors"),
        _figure("device.share_ms", found.share_ms, None, "CPU: check the roster, share"),
        _figure("device.reveal_ms", found.reveal_ms, None, "CPU: check the survivors, reveal"),
    ]
    return _peer(figures, {"mask_seconds": found.mask_ms.value / 1000, "bytes": found.bytes_up}, quick=quick)


def server(*, quick: bool) -> list[Figure]:
    """Unmasking a hundred clients of whom ten dropped out."""
    found = server_cost(
        20_000 if quick else PARAMETERS, devices=40 if quick else CLIENTS, dropouts=4 if quick else 10
    )
    figures = [
        _figure(
            "server.unmask_seconds", found.unmask_seconds, 1.0, f"wall; CPU {found.unmask_cpu_seconds.value:.3f} s"
        ),
        _figure("server.take_ms", found.take_ms, None, "CPU: take one device's masked values"),
    ]
    return _peer(figures, {"unmask_seconds": found.unmask_seconds.value}, quick=quick)


def helper(*, quick: bool) -> list[Figure]:
    """Sums with a helper, from a hundred to ten thousand clients."""
    sizes = (20, 100) if quick else (100, 1000, 10_000)
    length = 1000 if quick else 10_000
    costs = [helped_cost(clients, length, processes=2 if clients == sizes[-1] else 1) for clients in sizes]
    most = costs[-1]
    parts = (
        f"take {most.take_seconds:.2f} s on one core, answer {most.answer_seconds:.2f} s on two, "
        f"add {most.total_seconds:.2f} s"
    )
    each = ", ".join(f"{cost.clients}: {cost.cpu_us:.0f} us" for cost in costs)
    return [
        _figure("helper.clients_per_s", most.clients_per_s, None, f"{most.clients} clients x {length}; {parts}"),
        _figure("helper.flat", most.cpu_us / costs[0].cpu_us, 1.25, f"CPU per client, most over fewest; {each}"),
        _figure("helper.bytes_up", most.bytes_up, None, f"a device's message; {length} values of 16 bits"),
        _figure("helper.bytes_asked", most.bytes_asked, None, "from server to helper, per client"),
        _figure("helper.bytes_answered", most.bytes_answered, None, "from helper to server"),
    ]


def histogram(*, quick: bool) -> list[Figure]:
    """A query of 20 signals x 16 bins: all that a device does, but for the disk and the network."""
    query, template = question(SIGNALS, BINS)
    key = Ed25519PrivateKey.generate()
    helper = X25519PrivateKey.generate().public_key().public_bytes_raw()
    gift = Gift(query, template, helper, key.public_key().public_bytes_raw(), key.sign)
    note = (
        f"clip, round, noise, debit, mask, seal, sign; {query.bits} bits, epsilon 1 in {query.min_cohort} devices"
    )
    return [
        _figure("histogram.bytes_up", len(gift()), 1000, f"{query.bits} bits; without HTTP's headers"),
        _figure("histogram.cpu_ms", cpu_ms(gift, 50 if quick else 500), 2, note),
    ]


def memory(*, quick: bool) -> list[Figure]:
    """Resident memory of the private path."""
    with tempfile.TemporaryDirectory() as folder:
        leave_for_masking(Path(folder), 20_000 if quick else PARAMETERS)
        masked = resident_mb(_MASKS, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "asked").write_bytes(msgspec.json.encode(question(SIGNALS, BINS)))
        given = resident_mb(_GIVES, Path(folder))
        vector = question(0, 0, 20_000 if quick else PARAMETERS)
        Path(folder, "asked").write_bytes(msgspec.json.encode(vector))
        encoded = resident_mb(_ENCODES, Path(folder), peak=True)
    return [
        _figure("memory.histogram_mb", given, 60, "after one answer with noise, ledger and helper; no onnxruntime"),
        _figure("memory.encode_mb", encoded, 60, "peak of encoding a vector in place, its own 4 MB included"),
        _figure("memory.mask_mb", masked, 60, "after masking with neighbours, vector and letter still held"),
    ]


PARTS: dict[str, Callable[..., list[Figure]]] = {
    part.__name__: part for part in (device, server, helper, histogram, memory)
}


if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__))
