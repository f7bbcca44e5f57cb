"""`edgewright helper`: the second operator of private sums, who knows masks and nothing else."""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.cli.device_list import read_enrolled
from edgewright.contract.errors import InputError
from edgewright.device.queries.sum_client import UsedSeedsFile
from edgewright.privacy.aggregation_handler import HelperService
from edgewright.privacy.helper import MaskHelper
from edgewright.trust.keys.keystore import write_secret

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright helper --state HELPER --enrolled devices.txt --show
  edgewright helper --state HELPER --enrolled devices.txt --floor 100 --host 127.0.0.1 --port 8700

devices.txt holds a device's public key on each line, as 'edgewright device enrol' shows it. The list must come from
whoever enrols devices, not from the server; and whoever runs the helper must not run the server as well.
exit codes: 0 done; 1 its state cannot be written; 2 the input or usage is wrong.
"""
_KEY_BYTES = 32


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "helper",
        help="be the second operator of private sums",
        description="Answer a server with sums of masks, so that it can read sums and nothing else.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--state", metavar="STATE", required=True, type=Path, help="folder with its key and memory")
    parser.add_argument("--enrolled", metavar="FILE", required=True, type=Path, help="public keys of all devices")
    parser.add_argument("--floor", metavar="N", type=int, default=50, help="fewest devices it answers for (50)")
    parser.add_argument("--host", metavar="HOST", default="127.0.0.1", help="to listen on (127.0.0.1)")
    parser.add_argument("--port", metavar="PORT", type=int, default=8700, help="to listen on (8700); 0 for any")
    parser.add_argument("--show", action="store_true", help="show its public key, and end")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer until told to end.

    Raises:
        InputError: The list of devices cannot be read, or the floor is none.
        OutputError: The state cannot be written, or another helper uses it.
    """
    if arguments.floor < 2:
        raise InputError(f"a floor of {arguments.floor} devices", remedy="At least 2 are a sum.")
    path = arguments.state / "helper.key"
    if not path.exists():
        write_secret(path, os.urandom(_KEY_BYTES))
    used = UsedSeedsFile(arguments.state / "used")
    try:
        helper = MaskHelper(path.read_bytes(), read_enrolled(arguments.enrolled), used, min_devices=arguments.floor)
        if arguments.show:
            return _shown(arguments, helper, "")
        ended = threading.Event()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: ended.set())
        desk = HelperService(helper)
        with serve_aggregation(desk.handle, arguments.host, arguments.port, knows=desk.has_path) as url:
            code = _shown(arguments, helper, url)
            ended.wait()
            return code
    finally:
        used.close()


def _shown(arguments: argparse.Namespace, helper: MaskHelper, url: str) -> int:
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "public_key": helper.public_key.hex(), "url": url})
    else:
        print(f"The helper's key is {helper.public_key.hex()}." + (f" It answers at {url}." if url else ""))
    sys.stdout.flush()
    return 0
