"""`edgewright publish`: make a signed release of a model."""

import argparse
from pathlib import Path

import msgspec
from rich.console import Console

import edgewright
from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.cli.project_options import find_project
from edgewright.cli.records import read_record
from edgewright.cli.repository_options import add_options, open_repository
from edgewright.cli.signing_progress import signing
from edgewright.compress.release_variant import BuiltVariant, ReferenceData, build_image_variant, build_variant
from edgewright.contract.device_class import DeviceClass
from edgewright.contract.errors import InputError
from edgewright.contract.model.guard import GuardRules
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.names import checked_name
from edgewright.contract.release import Lineage, Manifest
from edgewright.contract.timestamps import parse_iso8601
from edgewright.contract.units import parse_quantity
from edgewright.trust.keys.keystore import KeyStore, create_key_file
from edgewright.trust.publishing.publish import list_releases, publish_release

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright publish edgewright-out --name digits --version 1.0.0 --keys KEYS --repo REPO
  edgewright publish small.onnx --name digits --version 1.1.0 --device-class camera --keys KEYS --repo REPO
  edgewright publish edgewright-out --name digits --version 1.2.0 --stage --keys KEYS --repo REPO
  edgewright publish image.raucb --kind firmware --name os --version 7.1 --keys KEYS --repo REPO

A release never changes; devices get it when a rollout points at it.
exit codes: 0 done; 1 the repository cannot be believed or written; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "publish",
        help="make a signed release of a model",
        description="Make a signed release of what `edgewright compress` wrote, or of any ONNX model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder that compress wrote, or an ONNX file")
    parser.add_argument("--name", metavar="NAME", required=True, help="of the model")
    parser.add_argument("--version", metavar="VERSION", required=True, help="of the release, such as 1.0.0")
    parser.add_argument(
        "--device-class", metavar="CLASS", help="that it is for (the only one of the project file, else default)"
    )
    parser.add_argument(
        "--variant", metavar="CLASS=FOLDER", action="append", default=[], help="for one more class; repeatable"
    )
    parser.add_argument(
        "--kind", choices=("model", "agent", "firmware"), default="model", help="what it is (model)"
    )
    parser.add_argument("--encrypt-to", metavar="FILE", type=Path, help="key of the fleet; made if there is none")
    parser.add_argument("--guard", metavar="FILE", type=Path, help="JSON with the guard's rules")
    parser.add_argument("--project", metavar="FILE", type=Path, help="project file with the device class's budget")
    parser.add_argument(
        "--reference", metavar="DATA", help="samples of what devices will see, to watch for drift from them"
    )
    parser.add_argument("--group", metavar="NAME", help="column or array of --reference with each sample's group")
    parser.add_argument(
        "--in-order", action="store_true", help="the samples of --reference are one device's, in order"
    )
    parser.add_argument("--interval", metavar="TIME", help="between two of them, such as 50ms")
    parser.add_argument("--licence", metavar="TEXT", default="", help="SPDX expression of the model's licence")
    parser.add_argument("--end-of-life", metavar="DATE", default="", help="not installed from then on, UTC")
    parser.add_argument("--deltas", metavar="N", type=int, default=3, help="deltas from the last N releases (3)")
    parser.add_argument("--stage", action="store_true", help="prepare it and leave the signing to 'repo sign'")
    add_options(parser, signs=True)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Publish.

    Raises:
        InputError: There is no such model, or the version is published already.
        TrustError: The repository cannot be believed.
    """
    made = _build_variants(arguments)
    first = next(iter(made.values()))
    repository = open_repository(arguments)
    earlier = list_releases(repository, arguments.name)
    lineage: Lineage = msgspec.structs.replace(
        first.lineage,
        parent=earlier[-1][0] if earlier else "",
        edgewright_version=first.lineage.edgewright_version or edgewright.__version__,
    )
    manifest = Manifest(
        name=arguments.name,
        version=arguments.version,
        kind=arguments.kind,
        variants=tuple(each.variant for each in made.values()),
        lineage=lineage,
        licence=arguments.licence,
        created_at=repository.now().isoformat(),
        end_of_life_at=arguments.end_of_life and parse_iso8601(arguments.end_of_life).isoformat(),
    )
    with signing(arguments.keys, "making deltas, uploading, signing") as keys:
        published = publish_release(
            repository,
            keys,
            manifest,
            {device_class: each.contents for device_class, each in made.items()},
            deltas_from=arguments.deltas,
            fleet=None if arguments.encrypt_to is None else _fleet(arguments.encrypt_to),
            only_stage=arguments.stage,
        )
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA_VERSION,
                "name": arguments.name,
                "version": arguments.version,
                "manifest": published.digest,
                "landed": published.published,
                "uploaded_bytes": published.uploaded_bytes,
            }
        )
    else:
        state = "published" if published.published else "staged; it waits for signatures"
        Console().print(f"{arguments.name} {arguments.version} is {state} ({published.digest[:16]}).")
    return 0


def _build_variants(arguments: argparse.Namespace) -> dict[str, BuiltVariant]:
    """Return the variants by device class."""
    project = find_project(arguments.project)
    guard = (
        GuardRules()
        if arguments.guard is None
        else read_record(
            arguments.guard, GuardRules, "rules of a guard", "See docs/reference/guard.md for its form."
        )
    )
    classes = [] if project is None else [each.name for each in project.device_classes]
    first = arguments.device_class or (classes[0] if len(classes) == 1 else "default")
    places = {first: arguments.folder}
    for text in arguments.variant:
        device_class, found, place = text.partition("=")
        if not found or device_class in places:
            raise InputError(
                f"--variant {text!r} is none, or the second for its class", remedy="Write camera=FOLDER, once each."
            )
        places[device_class] = Path(place)
    made = {}
    for device_class, place in places.items():
        if arguments.kind != "model":
            made[device_class] = build_image_variant(place, device_class)
            continue
        known = DeviceClass(device_class) if project is None else project.device_class(device_class)
        preprocess = None if project is None else project.preprocess
        reference = None if arguments.reference is None else _reference_data(arguments, preprocess)
        made[device_class] = build_variant(place, known, guard=guard, preprocess=preprocess, reference=reference)
    return made


def _reference_data(arguments: argparse.Namespace, preprocess: Preprocess | None) -> ReferenceData:
    interval_seconds = 0.0 if arguments.interval is None else parse_quantity(arguments.interval, "time")
    return ReferenceData(arguments.reference, arguments.in_order, interval_seconds, arguments.group, preprocess)


def _fleet(path: Path) -> tuple[str, KeyStore]:
    return checked_name("fleet key", path.stem), create_key_file(path)
