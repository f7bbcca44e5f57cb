"""The documents are true: their commands run, their links lead somewhere, their tables agree with the code."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from edgewright.cli.main import VERBS, main
from edgewright.compress.certify.certificate import min_samples_to_certify
from edgewright.compress.certify.look_ledger import alpha_of_look
from edgewright.compress.metrics.metric import METRIC_NAMES
from edgewright.compress.quantize.bit_packing import PACKED_DIGITS, bits_per_weight, max_packed_integer
from edgewright.compress.train.config import Distillation, TrainingConfig
from edgewright.compress.train.custom_recipe import CustomRecipe
from edgewright.compress.train.data.augmentation import augmentation_names
from edgewright.compress.train.data.modality import Modality
from edgewright.compress.train.nas.architecture import DIMENSION_LADDERS, Architecture, NetworkFamily
from edgewright.compress.train.nas.families import families_for
from edgewright.contract import certificate as evidence
from edgewright.contract import compression_report, errors, measurement, training_report
from edgewright.contract.alert import HEALTH_METRICS, SUM_METRICS
from edgewright.contract.config.project import parse_project
from edgewright.contract.config.sections import TaskKind
from edgewright.contract.model import guarantee, ood_detector, reference_profile
from edgewright.contract.model.guard import GuardAction, GuardCheck, GuardRules, InputRule
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.contract.query import permit, query
from edgewright.contract.refusal import RefusalCode
from edgewright.contract.schema import SCHEMA_VERSION
from edgewright.device.update.state_machine import UpdateLifecycleState, lifecycle_diagram
from edgewright.profiling import profiler, runtime_tuning, sustained_load, target
from edgewright.stats.exact_paired_bound import exact_drop_bound

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "changelog.d/README.md"))
MINIMAL = {"model": 'path = "m.onnx"\n', "data": 'source = "d.npz"\n'}

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documents are not in this installation")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, with what `<!-- test: … -->` above it says."""

    language: str
    text: str
    note: str


_OF_OTHERS = {"reproduce/main.py"}


def blocks_of(page: Path) -> Iterator[Block]:
    pattern = r"(?:^<!-- test: (?P<note>.*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    for match in re.finditer(pattern, page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        yield Block(match["language"], match["text"], match["note"] or "")


def shown_commands(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language == "sh" and not block.note.startswith("skip ")]


def table_rows(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def sections_of(page: Path) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named_in_code(text: str) -> set[str]:
    """Return what stands in backquotes at the beginning of a table's first cell, without its argument."""
    firsts = (re.match(r"`([^` ]+)", row[0]) for row in table_rows(text))
    return {first[1] for first in firsts if first}


def checked(command: str, code: str) -> str:
    """Return a line of shell that ends the script unless the command ends with this code."""
    said = shlex.quote(f"{command} must end with {code}, not with")
    return f"{command}\nhave=$?; [ $have = {code} ] || {{ echo {said} $have >&2; exit 99; }}"


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder as the pages assume it: the checkout's examples, a model, data, and short time limits."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples/digits/model.onnx", tmp_path)
    tools = tmp_path / ".tools"
    tools.mkdir()
    quick = (
        'case "$*" in compress*--train*) set -- "$@" --time-limit 15;; compress*) set -- "$@" --time-limit 1;; '
        'profile*) set -- "$@" --seconds 0.5;; esac\n'
        f'exec {sys.executable} -m edgewright "$@"'
    )
    for name, line in (("edgewright", quick), ("python", f'exec {sys.executable} "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    code = (
        "import numpy; from data import held_out, training; numpy.savez('../../test.npz', **held_out()); "
        "numpy.savez('../../train.npz', **training())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "examples/digits", check=True)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if shown_commands(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_shown_does_what_the_page_says(page: Path, workplace: Path) -> None:
    script = ["set -u", "trap 'kill $(jobs -p) 2> /dev/null' EXIT"]
    for block in blocks_of(page):
        if block.note.startswith("as "):
            (workplace / block.note.removeprefix("as ")).unlink(missing_ok=True)
            script.append(f"cat > {block.note.removeprefix('as ')} <<'END'\n{block.text}END")
        elif block.note == "background":
            script += [f"{command} > server.log 2>&1 &\nsleep 1" for command in block.text.splitlines()]
        elif block in shown_commands(page):
            expected = block.note.removeprefix("exit ") or "0"
            script += [checked(command, expected) for command in block.text.splitlines()]
    environment = {
        **os.environ,
        "PATH": f"{workplace / '.tools'}:{os.environ['PATH']}",
        "EDGEWRIGHT_STATE": str(workplace / ".state"),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_commands_are_skipped_only_for_stated_reasons() -> None:
    notes = [block.note for page in PAGES for block in blocks_of(page) if block.note]
    assert all(re.fullmatch(r"skip .{10,}|exit \d+|as [\w.]+|background", note) for note in notes)
    assert sum(note.startswith("skip ") for note in notes) <= 18


def test_python_and_toml_blocks_are_valid() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "python":
                compile(block.text, str(page), "exec")
            if block.language == "toml":
                present = tomllib.loads(block.text)
                missing = "".join(f"[{name}]\n{text}" for name, text in MINIMAL.items() if name not in present)
                parse_project(missing + block.text, page.name)


def test_python_shown_imports_what_there_is_and_names_parameters_that_there_are() -> None:
    for page in PAGES:
        for block in (one for one in blocks_of(page) if one.language == "python"):
            tree = ast.parse(block.text)
            ours: dict[str, Any] = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgewright"):
                    module = importlib.import_module(str(node.module))
                    ours |= {one.asname or one.name: getattr(module, one.name) for one in node.names}
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ours:
                    known = set(inspect.signature(ours[node.func.id]).parameters)
                    assert {one.arg for one in node.keywords} <= known, (page, node.func.id)


def test_every_file_that_is_named_exists() -> None:
    folders = ("src", "tests", "benchmarks", "examples", "docs")
    there = [f"/{path.relative_to(ROOT)}" for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for page in (page for page in PAGES if page.parent.name != "decisions"):
        named = set(re.findall(r"`([\w/-]+\.py)`", page.read_text()))
        assert {name for name in named if not any(path.endswith(f"/{name}") for path in there)} <= _OF_OTHERS, page


def links_of(page: Path) -> Iterator[tuple[Path, str]]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for place in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", place):
            path, _, anchor = place.partition("#")
            yield ((page.parent / path).resolve() if path else page), anchor


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for path, anchor in links_of(page):
            assert path.exists(), f"{page}: {path}"
            headings = (
                re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE) if path.suffix == ".md" else []
            )
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in slugs, f"{page}: {path.name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        reached.add(page)
        open_pages += [path for path, _ in links_of(page) if path.suffix == ".md" and path not in reached]
    assert not set(PAGES) - reached


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_documented_and_no_other(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out.split("examples:")[0]
    for act in re.findall(r"^    ([a-z]+)\b", shown, re.MULTILINE) if "ACT" in shown else ():
        with pytest.raises(SystemExit):
            main([verb, act, "--help"])
        shown += capsys.readouterr().out
    offered = {
        *re.findall(r"^  (--[a-z0-9-]+)", shown, re.MULTILINE),
        *re.findall(r"^  (MODEL)\b", shown, re.MULTILINE),
    }
    section = sections_of(DOCS / "reference/cli.md")[f"edgewright {verb}"]
    assert {name for name in named_in_code(section) if name.startswith("--") or name == "MODEL"} == offered


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert all(f"| `edgewright {verb}` |" in text for verb in VERBS)


def known_keys(section: str) -> set[str]:
    """Return the keys that a section of a project file may have, as the error about another one says."""
    if section == "device_class.budget":
        extra = '[[device_class]]\nname = "a"\n[device_class.budget]\nnonsense = 1\n'
    elif section in ("device_class", "alert", "action", "notify.webhook", "notify.email"):
        extra = f"[[{section}]]\nnonsense = 1\n"
    else:
        extra = "" if section in MINIMAL else f"[{section}]\nnonsense = 1\n"
    tables = "".join(
        f"[{name}]\n{text}" + ("nonsense = 1\n" if name == section else "") for name, text in MINIMAL.items()
    )
    with pytest.raises(errors.ProjectError) as caught:
        parse_project(tables + extra if section else "nonsense = 1\n")
    found = re.search(r"Known here: ([\w, ]+)", caught.value.remedy)
    assert found
    return set(found[1].replace(" ", "").split(","))


def test_every_project_key_is_documented_and_no_other() -> None:
    sections = {title.strip("[]"): text for title, text in sections_of(DOCS / "reference/project-file.md").items()}
    assert set(sections) == known_keys("") | {"device_class.budget", "notify.webhook", "notify.email"}
    for title, text in sections.items():
        assert named_in_code(text.partition("\n### ")[0]) == known_keys(title), title
    metrics = named_in_code(sections["alert"].partition("\n### ")[2]) - {"metric"}
    assert metrics == {*HEALTH_METRICS, *SUM_METRICS, "drift.SIGNAL", "power.SIGNAL", "outcome.NAME"}


@pytest.mark.parametrize(
    ("page", "records"),
    [
        (
            "report.md",
            (
                compression_report.CompressionReport,
                compression_report.ModelFigures,
                measurement.Measurement,
                measurement.MeasurementOrigin,
                evidence.Certificate,
                compression_report.BudgetOutcome,
                compression_report.FasterOptions,
                compression_report.SearchTrial,
                training_report.TrainingReport,
                training_report.TrainedNetwork,
                training_report.CurvePoint,
                training_report.AblationResult,
            ),
        ),
        (
            "profile.md",
            (
                profiler.LatencyProfile,
                profiler.ProfiledModel,
                profiler.ProfileComparison,
                profiler.LimitCheck,
                runtime_tuning.OptionsSearchResult,
                runtime_tuning.OptionsTrial,
                sustained_load.SustainedResult,
                sustained_load.LoadSlice,
                sustained_load.ContentionResult,
                target.Machine,
            ),
        ),
        (
            "query.md",
            (permit.QueryPermit, query.QueryTemplate, query.CountedSignal, query.Query, query.DeviceQueryLimits),
        ),
        (
            "monitor.md",
            (
                reference_profile.ReferenceProfile,
                reference_profile.ReferenceSignal,
                ood_detector.OodRule,
                guarantee.PredictionSetRule,
                guarantee.AcceptanceRule,
                guarantee.Guarantee,
            ),
        ),
    ],
)
def test_every_field_is_documented_and_no_other(page: str, records: tuple[type[msgspec.Struct], ...]) -> None:
    sections = sections_of(DOCS / "reference" / page)
    assert set(sections) == {record.__name__ for record in records}
    for record in records:
        fields = {field.encode_name for field in msgspec.structs.fields(record)}
        assert named_in_code(sections[record.__name__]) == fields, record.__name__
    schema = SCHEMA_VERSION
    assert f"chema {schema}" in (DOCS / "reference" / page).read_text("utf-8")


def test_every_family_is_documented_with_its_numbers() -> None:
    page = DOCS / "reference/families.md"
    rows = {row[0].strip("`"): row for row in table_rows(page.read_text("utf-8").split("## Numbers")[0])}
    del rows["family"]
    assert tuple(rows) == get_args(NetworkFamily)
    for family, row in rows.items():
        architecture = Architecture(family)  # type: ignore[arg-type] # the names have just been compared
        assert tuple(re.findall(r"`(\w+)`", row[3])) == architecture.dimensions
        assert architecture.title.startswith(row[1])
    assert named_in_code(sections_of(page)["Numbers"]) == set(DIMENSION_LADDERS)


@pytest.mark.parametrize(
    ("kind", "shape"), [("image", (1, 8, 8)), ("spectrogram", (1, 49, 10)), ("series", (128, 6)), ("table", (9,))]
)
def test_families_and_augmentations_of_each_kind_are_documented(kind: Modality, shape: tuple[int, ...]) -> None:
    rows = {row[0].strip("`"): row for row in table_rows(sections_of(DOCS / "reference/families.md")["Which suit"])}
    sample, classes = TensorSpec("x", "float32", ("n", *shape)), TensorSpec("y", "float32", ("n", 10))
    named = re.findall(r"`(\w+)`", rows[kind][2]) or [
        family for other in ("image", "series") for family in re.findall(r"`(\w+)`", rows[other][2])
    ]
    assert tuple(named) == families_for(kind, ModelSignature((sample,), (classes,)))
    assert tuple(re.findall(r"`([\w-]+)`", rows[kind][3])) == augmentation_names(kind)


def test_every_name_and_setting_of_a_training_recipe_is_documented() -> None:
    sections = sections_of(DOCS / "reference/training-recipe.md")
    assert named_in_code(sections["Your own"]) == {field.name for field in dataclasses.fields(CustomRecipe)}
    fields = {field.name for record in (TrainingConfig, Distillation) for field in msgspec.structs.fields(record)}
    assert named_in_code(sections["What is usual"]) == fields


def test_every_error_and_exit_code_is_documented() -> None:
    bases: dict[str, str] = {}

    def exit_code(name: str) -> int:
        known = getattr(errors, name, None)
        return exit_code(bases[name]) if known is None else int(known.exit_code)

    rows = list(table_rows((DOCS / "reference/errors-and-exit-codes.md").read_text("utf-8")))
    told = [(row[0].strip("`"), int(row[1]), row[2].strip("`")) for row in rows if row[0].startswith("`")]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    codes: list[tuple[str, str]] = []
    for name, base, body in re.findall(
        r"^class (\w+Error)\((\w+Error)\):\n(.*?)(?=^\S)", sources, re.MULTILINE | re.DOTALL
    ):
        bases[name] = base
        codes.append((re.search(r'^    code = "(\w+)"', body, re.MULTILINE)[1], name))  # type: ignore[index] # all have one
    found = [(code, exit_code(name), name) for code, name in codes]
    assert sorted(told) == sorted([*found, ("usage", 2, ""), ("interrupted", 130, "")])
    assert {"0", "1", "2", "130"} <= {row[0] for row in rows}


def test_every_metric_task_and_environment_variable_is_documented() -> None:
    for page in ("cli.md", "project-file.md"):
        text = (DOCS / "reference" / page).read_text("utf-8")
        assert [name for name in METRIC_NAMES if f"`{name}`" not in text] == [], page
    text = (DOCS / "reference/project-file.md").read_text("utf-8")
    assert [task for task in get_args(TaskKind) if f"`{task}`" not in text] == []
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    text = (DOCS / "reference/cli.md").read_text("utf-8")
    assert [name for name in set(re.findall(r"EDGEWRIGHT_[A-Z_]+", sources)) if f"`{name}`" not in text] == []


def test_the_life_of_an_update_is_drawn_from_its_table() -> None:
    page = DOCS / "reference/lifecycle.md"
    assert [block.text for block in blocks_of(page) if block.language == "mermaid"] == [lifecycle_diagram()]
    rows = [row[0] for row in table_rows(page.read_text("utf-8"))][1:]
    assert rows == [str(state) for state in UpdateLifecycleState]


def test_every_refusal_and_check_is_documented() -> None:
    section = sections_of(DOCS / "reference/repository.md")["Refusals"]
    codes = {row[0].strip("`") for row in table_rows(section)} - {"code"}
    assert codes == set(get_args(RefusalCode))
    rows = list(table_rows((DOCS / "reference/guard.md").read_text("utf-8")))[1:]
    assert {row[0].strip("`") for row in rows} == set(get_args(GuardCheck))
    for row in rows:
        for action in get_args(GuardAction):
            allowed = action in row[2].split(", ")
            try:
                InputRule(row[0].strip("`"), action)  # type: ignore[arg-type] # the names have just been compared
            except errors.InputError:
                assert not allowed
            else:
                assert allowed


def test_the_guards_example_can_be_read() -> None:
    page = DOCS / "reference/guard.md"
    (example,) = [block.text for block in blocks_of(page) if block.language == "json"]
    assert len(msgspec.json.decode(example, type=GuardRules).inputs) == 3


def test_the_glossary_has_every_word_once_in_order() -> None:
    words = [row[0] for row in table_rows((DOCS / "glossary.md").read_text("utf-8"))][1:]
    assert words == sorted(set(words), key=str.lower)
    assert not set(
        "Model Candidate Recipe Step Trial Front Budget DeviceClass Target Measurement Origin Certificate Look "
        "Verdict Splits Drop Peak Form U8S8 S8S8 Fidelity Ledger Group Metric Network Teacher Student Round "
        "Family Release Variant Manifest Policy Plan Rollout Agent Guard Journal Probation Refusal Slot".split()
    ) - set(words)


def numbers_in(row: list[str]) -> list[str]:
    return [cell.replace(",", "") for cell in row]


def test_the_tables_of_sample_counts_are_right() -> None:
    text = sections_of(DOCS / "how-to/insufficient-data.md")["How many samples are needed"]
    rows = [numbers_in(row) for row in table_rows(text)]
    split = next(i for i, row in enumerate(rows) if row[0].startswith("answers lost"))
    for drop, *counts in rows[1:split]:
        assert [min_samples_to_certify(float(drop), 0.95, look) for look in (1, 2, 3)] == [
            int(count) for count in counts
        ]
    alpha = alpha_of_look(0.05, 1)
    for lost, *counts in rows[split + 1 :]:
        for count, limit in zip(counts, (0.005, 0.01, 0.02), strict=True):
            bounds = [exact_drop_bound(int(lost), 0, samples, alpha) for samples in (int(count), int(count) - 1)]
            assert bounds[0] <= limit < bounds[1] + 1e-9


def test_the_table_of_tight_weights_is_right() -> None:
    text = sections_of(DOCS / "explanation/tight-weights.md")["How"]
    shown = [(row[0].split()[0], row[1].replace(",", ""), row[2]) for row in table_rows(text)][1:]
    assert shown == [(str(n), str(max_packed_integer(n)), f"{bits_per_weight(n):.1f}") for n in PACKED_DIGITS]


def test_the_picture_in_the_readme_is_drawn_from_a_report(tmp_path: Path) -> None:
    figure = {"value": 1000.0, "origin": {"machine": "a machine"}}
    figures = dict.fromkeys(("size_bytes", "latency_p50_ms", "peak_memory_bytes"), figure)
    certificate = {"max_drop": 0.01, "upper_bound": 0.004, "drop": -0.001, "metric": "accuracy"}
    report = {
        "verdict": "smaller & faster",
        "original": figures,
        "chosen": figures,
        "certificate": {**certificate, "verdict": "certified", "confidence": 0.95, "samples": 600},
        "versions": {"onnxruntime": "1", "edgewright": "0"},
        "search": {"seconds": np.float64(3).item()},
    }
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report))
    script = DOCS / "images/make_result.py"
    subprocess.run([sys.executable, script, tmp_path / "report.json", tmp_path / "out.svg"], check=True)
    drawn, kept = ((path).read_text("utf-8") for path in (tmp_path / "out.svg", DOCS / "images/result.svg"))
    assert "smaller &amp; faster" in drawn
    assert drawn.count("<rect") == kept.count("<rect")
