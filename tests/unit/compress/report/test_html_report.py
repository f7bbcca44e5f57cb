"""The page and the summary say everything, to everyone, and let nothing in or out."""

import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from edgewright.compress.report.html_report import html_report, print_summary
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import BudgetOutcome, CompressionReport, ModelFigures, SearchTrial
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.contract.model.signature import ModelSignature
from edgewright.contract.training_report import AblationResult, CurvePoint, TrainedNetwork, TrainingReport

HOSTILE = "<script>alert(1)</script>&\"'`]]>--><!--{{ 7*7 }}[red]\x00\x1b[31m"
MACHINE = "AMD EPYC, 2 cores, x86_64"
MEASURED = MeasurementOrigin(kind="measured", machine=MACHINE, method="49 interleaved rounds")
ESTIMATED = MeasurementOrigin(kind="estimated", machine=MACHINE, method="CPU time 0.04 ms x 2.5 W per busy core")
COMPUTED = MeasurementOrigin(kind="computed", machine="any", method="bytes of the file")
SECTIONS = [
    *("certificate figures budget front-section latency".split()),
    *("layers steps lint trials run facts".split()),
]


def figures(share: float, name: str, **changes: Any) -> ModelFigures:
    def around(value: float, unit: str, origin: MeasurementOrigin) -> Measurement:
        return Measurement(value, unit, origin, low=0.99 * value, high=1.01 * value, observation_count=49)

    return replace(
        ModelFigures(
            path=f"out/{name}.onnx",
            sha256=name * 8,
            size_bytes=Measurement(632_000 * share, "bytes", COMPUTED),
            compressed_bytes=Measurement(560_000 * share, "bytes", COMPUTED),
            latency_p50_ms=around(0.0369 * share, "ms", MEASURED),
            latency_p95_ms=around(0.0386 * share, "ms", MEASURED),
            latency_ratio=around(share, "ratio", MEASURED),
            peak_memory_bytes=around(3.2e6 * share, "bytes", MEASURED),
            energy_mj=Measurement(0.094 * share, "mJ", ESTIMATED),
            recipe=None if share == 1 else [{"step": "clean up"}, {"step": "static int8", "calibrator": "mse"}],
            title=name,
            runtime={"threads": 1, "spinning": False},
        ),
        **changes,
    )


def trial(number: int, **changes: Any) -> SearchTrial:
    return replace(
        SearchTrial(
            number=number,
            title=f"static U8S8 mse {number}",
            recipe=[],
            state="complete",
            reason="judged on the select split",
            duration_seconds=0.9,
            seed=0,
            sha256=f"trial{number}",
            size_bytes=60_000 + 1000 * number,
            metric=0.99,
            drop=0.002 * (number % 8) - 0.002,
            sqnr_db=20.0,
            latency_ratio=0.6 + 0.01 * number,
            on_pareto_front=number < 9,
        ),
        **changes,
    )


CERTIFICATE = Certificate(
    verdict="certified",
    metric="accuracy",
    original_metric=0.99,
    chosen_metric=0.985,
    drop=0.005,
    upper_bound=0.0079,
    lower_bound=-0.0011,
    confidence=0.95,
    sample_count=600,
    max_drop=0.01,
    method="exact",
    look=2,
    look_confidence=0.9917,
    cluster_count=None,
    additional_samples_needed=None,
    reason="On 600 samples the drop of accuracy is at most 0.0079, within the limit of 0.01.",
    data_fingerprint="ab" * 32,
    candidate_sha256="ab" * 32,
)
LIMITS: dict[str, dict[str, Any]] = {
    "size_bytes": {"limit": 200_000.0, "value": 63_200.0, "kept": True, "share": 0.316},
    "energy_mj": {"limit": 1.0, "value": 0.0094, "kept": True, "share": 0.0094},
    "max_drop": {"limit": 0.01, "value": 0.0079, "kept": True, "share": 0.79},
}
TRIALS = (
    *(trial(n) for n in range(10)),
    trial(10, state="pruned", reason="drop of 0.7 on 64 samples", latency_ratio=None),
)


def report_of(**changes: Any) -> CompressionReport:
    return replace(
        CompressionReport(
            schema=2,
            verdict="10.0 times smaller, 0.10 times the latency.",
            original=figures(1.0, "original"),
            chosen=figures(0.1, "model"),
            certificate=CERTIFICATE,
            budget=BudgetOutcome(met=True, binding_limit="max_drop", limits=LIMITS),
            pareto_front=TRIALS[:9],
            trials=TRIALS,
            fidelity={"sqnr_db": 20.7, "agreement": 0.998},
            contract=ModelSignature(inputs=(), outputs=()),
            lint={
                "original": {"layers": 9, "integer_layers": 0, "conversions": 0, "findings": []},
                "chosen": {
                    "layers": 9,
                    "integer_layers": 8,
                    "conversions": 2,
                    "findings": [
                        {
                            "rule": "unquantized output",
                            "where": "conv_7",
                            "reason": "its output stays in float",
                            "remedy": "Quantise its output.",
                            "mendable": True,
                        }
                    ],
                },
            },
            sensitivity={"few bits": {"conv_1": 1e-3, "conv_2": 1e-4}, "integers": {"conv_1": 1e-5}},
            step_effects=(
                {"step": "clean up", "size_bytes": 600_000, "sqnr_db": 200.0},
                {"step": "static int8", "size_bytes": 63_200, "sqnr_db": 20.4},
            ),
            latencies={"original": [0.036, 0.037, 0.038], "chosen": [0.0036, 0.0037, 0.9]},
            data={"source": "digits.npz", "samples": 1200, "certify": 600, "notes": ["task found out"]},
            machine={"cpu": "AMD EPYC", "cores": 2, "features": ["avx2"], "memory_bytes": 8e9},
            search={"seconds": 31.7, "seed": 7, "trials": {"complete": 10, "pruned": 1, "failed": 0}},
            versions={"edgewright": "0.1.0", "onnxruntime": "1.31.1"},
            report_path="out/report.html",
            output_folder="out",
            usage_example='import onnxruntime as ort\nsession = ort.InferenceSession("out/model.onnx")',
        ),
        **changes,
    )


INSUFFICIENT = report_of(
    verdict="The original is returned: too few samples.",
    chosen=figures(1.0, "original"),
    certificate=replace(CERTIFICATE, verdict="insufficient data", max_drop=0.001, additional_samples_needed=3088),
    budget=BudgetOutcome(
        met=False, binding_limit="max_drop", limits={"max_drop": {**LIMITS["max_drop"], "kept": False}}
    ),
    step_effects=(),
)
REFUTED = report_of(
    chosen=figures(1.0, "original"),
    certificate=replace(CERTIFICATE, verdict="refuted", drop=0.1, lower_bound=0.05, upper_bound=0.15),
    budget=BudgetOutcome(met=False, binding_limit="max_drop", limits={}),
)
TOO_LARGE = report_of(
    budget=BudgetOutcome(
        met=False,
        binding_limit="size_bytes",
        limits={"size_bytes": {"limit": 5000.0, "value": 63_200.0, "kept": False, "share": 12.64}},
    )
)
NAN = float("nan")
BARE = report_of(
    original=figures(1.0, "original", peak_memory_bytes=None, energy_mj=None),
    chosen=figures(
        0.1, "model", peak_memory_bytes=None, energy_mj=None, latency_ratio=Measurement(NAN, "ratio", MEASURED)
    ),
    certificate=replace(
        CERTIFICATE, original_metric=NAN, chosen_metric=NAN, drop=NAN, upper_bound=1.7e308, lower_bound=-1.7e308
    ),
    budget=BudgetOutcome(
        met=True, binding_limit=None, limits={"max_drop": {"limit": 0.01, "value": NAN, "kept": False}}
    ),
    pareto_front=(),
    trials=(trial(0, latency_ratio=NAN, drop=None, sqnr_db=NAN), trial(1, state="failed", size_bytes=0)),
    fidelity={"sqnr_db": None, "agreement": None},
    lint={"original": {"error": "the runtime refuses it"}},
    sensitivity={"few bits": {"conv": NAN}, "integers": {}},
    step_effects=({"step": "clean up", "size_bytes": None, "sqnr_db": NAN},),
    latencies={"original": [NAN], "chosen": []},
    data={},
    machine={},
    search={},
    versions={},
)


def curve(*metrics: float, **notes: str) -> tuple[CurvePoint, ...]:
    """Return a curve; `epoch_2="..."` is a note on it."""
    return tuple(
        CurvePoint(
            epoch=epoch,
            training_rows=1000 * epoch,
            train_loss=1.0 if epoch else None,
            validation_loss=1.0,
            validation_metric=metric,
            learning_rate=1e-3,
            elapsed_seconds=float(epoch),
            note=notes.get(f"epoch_{epoch}", ""),
        )
        for epoch, metric in enumerate(metrics)
    )


def network(name: str, **changes: Any) -> TrainedNetwork:
    return replace(
        TrainedNetwork(
            network_sha256=f"sha-{name}",
            title=f"plain cnn {name}",
            origin="fresh",
            parent_sha256=f"start-{name}",
            search_round=1,
            training_rows=2000,
            distilled=True,
            parameters=10_090,
            latency_ratio=0.248,
            validation_metric=0.9,
            drop=0.0061,
            training_seconds=12.5,
            learning_curve=curve(0.1, 0.6, 0.9),
        ),
        **changes,
    )


ROLLED_BACK = "the loss was not finite: back to the epoch's start, at half the rate"
NETWORKS = (
    network("a"),
    network("b", learning_curve=curve(0.1, 0.3, 0.5, epoch_1=ROLLED_BACK)),
    network("c", network_sha256="", error="the worker died three times", learning_curve=curve(0.1, 0.2)),
    network(
        "d",
        network_sha256="",
        error="there was no time left to begin it",
        learning_curve=(),
        validation_metric=None,
        drop=None,
    ),
    network("e", distilled=False),
    network("f", origin="continued", parent_sha256="sha-a", search_round=2, learning_curve=curve(0.9, 0.95)),
    network("g", origin="integers", parent_sha256="sha-f", learning_curve=curve(0.91, 0.96)),
)
CONTRIBUTIONS = (
    AblationResult("distillation", "plain cnn a", "select split", 0.8, 0.91),
    AblationResult("distillation", "plain cnn b", "validation rows", 0.93, 0.9),
    AblationResult("training of integers", "plain cnn f", "select split", 0.95, 0.95, 0.53, 1.2),
)
TRAINING = TrainingReport(
    engine="ray",
    workers=3,
    total_seconds=100.8,
    training_rows=5370,
    validation_rows=600,
    augmentations=("shift", "light"),
    notes=("augmentation 'mirror': not used",),
    networks=NETWORKS,
    ablations=CONTRIBUTIONS,
)
TRAINED_TRIALS = (
    *TRIALS,
    trial(11, network_sha256="sha-b", drop=0.2),
    trial(12, network_sha256="sha-g", sha256="model" * 8, on_pareto_front=True),
)
TRAINED = report_of(training=TRAINING, trials=TRAINED_TRIALS, pareto_front=(*TRIALS[:9], TRAINED_TRIALS[-1]))
UNTRAINED = report_of(training=replace(TRAINING, networks=(), ablations=(), notes=(), augmentations=()))
UNKNOWN = replace(
    BARE,
    training=replace(
        TRAINING,
        total_seconds=NAN,
        networks=(
            network(
                "a",
                latency_ratio=NAN,
                validation_metric=NAN,
                drop=NAN,
                training_seconds=NAN,
                learning_curve=curve(NAN, NAN),
            ),
            network("b", training_rows=0, learning_curve=curve(0.5)),
        ),
        ablations=(AblationResult("pruning", "a", "select split", NAN, 0.5, NAN, NAN),),
    ),
)
EVERY = {
    "good": report_of(),
    "insufficient": INSUFFICIENT,
    "refuted": REFUTED,
    "too large": TOO_LARGE,
    "bare": BARE,
    "trained": TRAINED,
    "nothing trained": UNTRAINED,
    "training unknown": UNKNOWN,
}


class Outline(HTMLParser):
    """Elements, references and unbalanced tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "path", "polyline"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "srcset", "action", "data", "xlink:href", "poster"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "polyline"):
            assert self.open.pop() == tag


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]  # noqa: S314 - our own


def summary(report: CompressionReport, **options: Any) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=80, **options))
    return stream.getvalue()


@pytest.mark.parametrize("case", EVERY)
def test_every_section_is_there_whatever_was_found(case: str) -> None:
    text = html_report(EVERY[case])
    outline = Outline(text)
    assert [name for name in outline.ids if name in SECTIONS] == SECTIONS or set(SECTIONS) <= set(outline.ids)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.tags.count("h1") == 1
    assert outline.tags.count("table") == outline.tags.count("caption")


@pytest.mark.parametrize("case", EVERY)
def test_a_page_refers_to_nothing_outside_itself(case: str) -> None:
    text = html_report(EVERY[case])
    assert all(link.startswith("#") for link in Outline(text).links)
    assert {link[1:] for link in Outline(text).links} <= set(Outline(text).ids)
    assert not re.search(r"@import|url\(|https?:|<script|<link|<iframe|<img", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("case", EVERY)
def test_drawings_are_valid_and_described(case: str) -> None:
    for svg in svgs(html_report(EVERY[case])):
        if svg.get("aria-hidden") != "true":
            assert svg.find("title") is not None
            assert svg.find("desc") is not None
        assert "nan" not in ET.tostring(svg, encoding="unicode")


@pytest.mark.parametrize("case", EVERY)
def test_unknown_figures_are_never_shown_as_numbers(case: str) -> None:
    for text in (html_report(EVERY[case]), summary(EVERY[case])):
        assert not re.search(r"\b(nan|inf|None|1\.7e\+?308)\b", text)


def test_names_from_models_and_data_are_text_and_never_markup() -> None:
    layers = {HOSTILE: 1e-3, "b": 1e-4}
    hostile = report_of(
        verdict=HOSTILE,
        original=figures(1.0, "original", path=f"/models/{HOSTILE}"),
        chosen=figures(0.1, "model", title=HOSTILE, path=HOSTILE, recipe=[{"step": HOSTILE}]),
        certificate=replace(CERTIFICATE, metric=HOSTILE, reason=HOSTILE, method=HOSTILE, data_fingerprint=HOSTILE),
        budget=BudgetOutcome(
            met=False, binding_limit=HOSTILE, limits={HOSTILE: {**LIMITS["max_drop"], "kept": False}}
        ),
        trials=(trial(0, title=HOSTILE, reason=HOSTILE), trial(1)),
        pareto_front=(trial(0, title=HOSTILE),),
        lint={"chosen": {"findings": [dict.fromkeys(("rule", "where", "reason", "remedy"), HOSTILE)]}},
        sensitivity={"few bits": layers, HOSTILE: layers},
        step_effects=({"step": HOSTILE, "size_bytes": 1, "sqnr_db": 1.0},),
        latencies={"original": [1.0], HOSTILE: [2.0]},
        data={"source": HOSTILE, "notes": [HOSTILE], HOSTILE: HOSTILE},
        machine={HOSTILE: [HOSTILE]},
        versions={HOSTILE: HOSTILE},
        report_path=HOSTILE,
        output_folder=HOSTILE,
        usage_example=HOSTILE,
        training=replace(
            TRAINING,
            engine=HOSTILE,
            augmentations=(HOSTILE,),
            notes=(HOSTILE,),
            networks=(network("a", title=HOSTILE, error=HOSTILE, learning_curve=curve(0.1, 0.2, epoch_1=HOSTILE)),),
            ablations=(AblationResult(HOSTILE, HOSTILE, HOSTILE, 0.1, 0.2),),
        ),
    )
    text = html_report(hostile)
    assert Outline(text).open == []
    assert "script" not in Outline(text).tags
    assert "49[red]" not in text
    drawings = svgs(text)
    assert any(HOSTILE[:25] in (title.text or "") for svg in drawings for title in svg.iter("title"))
    assert "<script>alert" in summary(hostile)
    assert "[red]" in summary(hostile)
    assert "\x1b" not in summary(hostile) + text


def test_estimates_are_labelled_wherever_they_appear() -> None:
    text = html_report(report_of())
    for value in ("94.0 uJ", "9.40 uJ"):
        shown = [match.end() for match in re.finditer(re.escape(value), text)]
        assert shown
        assert all("estimated" in text[end : end + 60] for end in shown)
    assert "(estimated)" in summary(report_of())
    binding = replace(report_of().budget, binding_limit="energy_mj")
    assert "9.40 uJ (estimated)" in summary(report_of(budget=binding))
    broken = replace(binding, met=False, limits={"energy_mj": {**LIMITS["energy_mj"], "kept": False}})
    for text in (html_report(report_of(budget=broken)), summary(report_of(budget=broken))):
        assert "9.40 uJ (estimated) against" in " ".join(text.split())


def test_every_figure_has_its_origin_beside_it() -> None:
    rows = re.findall(
        r"<tr>.*?</tr>", html_report(report_of()).split('id="figures"')[1].split("</section>")[0], re.S
    )[1:]
    assert len(rows) == 8
    for row in rows:
        assert len(re.findall(r'class="tag (?:measured|estimated|computed)"', row)) == 2
        assert "rounds" in row or "CPU time" in row or "bytes" in row or "certify split" in row


def test_insufficient_data_says_how_much_more_is_needed() -> None:
    for text in (html_report(INSUFFICIENT), summary(INSUFFICIENT)):
        flat = " ".join(text.split())
        assert "about 3,100 more labelled samples" in flat
        assert "at most 6,200 in all" in flat
        assert "--max-drop 0.0087" in flat
        assert "best candidate, which is not returned" in flat


def test_a_refuted_candidate_is_not_blamed_on_too_little_data() -> None:
    for text in (html_report(REFUTED), summary(REFUTED)):
        assert "More data will not help" in text
        assert "--max-drop" in text


def test_a_broken_budget_names_the_limit_the_figure_and_the_option() -> None:
    for text in (html_report(TOO_LARGE), summary(TOO_LARGE)):
        flat = " ".join(text.split())
        assert "size of the file is 63.2 KB against 5.00 KB, 12.6 times the limit" in flat
        assert "--max-size" in flat


def test_nothing_is_advised_where_nothing_is_wrong() -> None:
    assert "What to do next" not in html_report(report_of())
    assert "What to do next" not in summary(report_of())


def test_only_the_noisiest_of_many_layers_are_drawn_and_the_page_says_so() -> None:
    names = [f"/backbone/stage{n:03}/a_name_that_no_plot_has_room_for/Conv" for n in range(100)]
    text = html_report(
        report_of(sensitivity={"few bits": {name: 10.0 ** (-1 - n / 20) for n, name in enumerate(names)}})
    )
    (drawing,) = [svg for svg in svgs(text) if svg.find("title[@id='sensitivity-title']") is not None]
    labels = [text for text in drawing.iter("text") if text.get("class") == "layer"]
    assert len(labels) == 30
    assert "The 30 noisiest of 100 layers are shown." in text
    for label, name in zip(labels, names, strict=False):
        title = label.find("title")
        assert title is not None
        assert (title.text or "").startswith(name)
        assert len(title.tail or "") <= 22
    assert len({label.find("title").tail for label in labels}) == 30  # type: ignore[union-attr]


def test_marks_stay_within_the_drawing() -> None:
    wild = tuple(trial(n, latency_ratio=0.01 * 10**n, size_bytes=10**n) for n in range(5))
    for report in (
        report_of(),
        report_of(trials=wild),
        report_of(trials=wild[:1], pareto_front=wild[:1]),
        BARE,
        INSUFFICIENT,
        TRAINED,
        UNKNOWN,
    ):
        for svg in svgs(html_report(report)):
            box = [float(v) for v in (svg.get("viewBox") or "").split()]
            for path in svg.iter("path"):
                if move := re.fullmatch(r"translate\((.*),(.*)\)", path.get("transform") or ""):
                    assert box[0] <= float(move[1]) <= box[0] + box[2]
                    assert box[1] <= float(move[2]) <= box[1] + box[3]


def test_front_and_drop_differ_in_shape_and_not_only_in_shade() -> None:
    (drawing,) = [svg for svg in svgs(html_report(report_of())) if svg.find("title[@id='front-title']") is not None]
    shapes = {path.get("class"): path.get("d") for path in drawing.iter("path")}
    assert len(shapes) == len(set(shapes.values())) == 5
    assert sum((path.get("class") or "").startswith("mark") for path in drawing.iter("path")) == 10


def named(text: str, title: str) -> list[ET.Element]:
    """Return the drawings whose title begins so."""
    return [svg for svg in svgs(text) if (svg.findtext("title") or "").startswith(title)]


def rows_of(text: str, title: str) -> list[str]:
    """Return the rows of the table after a heading, without markup."""
    table = text.split(f"<h3>{title}</h3>")[1].split("</table>")[0]
    rows = re.findall(r"<tr>.*?</tr>", table, re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


def test_without_training_nothing_speaks_of_it() -> None:
    assert "Training" not in html_report(report_of())
    assert "hollow:" not in html_report(report_of())
    assert "training:" not in summary(report_of())
    assert 'href="#training"' in html_report(TRAINED)


def test_marks_of_trained_networks_are_hollow_and_the_legend_says_so() -> None:
    text = html_report(TRAINED)
    (drawing,) = named(text, "Candidates")
    marks = [path for path in drawing.iter("path") if (path.get("class") or "").startswith("mark")]
    hollow = [path for path in marks if "hollow" in (path.get("class") or "").split()]
    assert len(marks) == 12
    assert [(path.findtext("title") or "").split(":")[0] for path in hollow] == ["11", "12"]
    assert all("trained network" in (path.findtext("title") or "") for path in hollow)
    assert "2 of trained networks" in (drawing.findtext("desc") or "")
    assert "hollow: a trained network" in text
    assert 'class="tag">trained<' in text


def test_every_trained_network_is_listed_with_where_its_weights_come_from() -> None:
    rows = rows_of(html_report(TRAINED), "Trained networks")[1:]
    assert [row for row in rows if "cnn" not in row] == ["Round 1", "Round 2", "Integers, round 1"]
    listed = [row for row in rows if "cnn" in row]
    assert [row.split(".")[0] for row in listed] == [str(n) for n in range(1, 8)]
    assert "10,090 0.248 90.00 % 0.61 pp 2,000 12.5" in listed[0]
    for row, words in (
        (0, "fresh weights"),
        (1, f"epoch 1: {ROLLED_BACK}".replace("'", "&#39;")),
        (2, "failed: the worker died three times"),
        (3, "not trained: there was no time left to begin it"),
        (4, "fresh weights; without a teacher"),
        (5, "those of no. 1, trained on"),
        (6, "those of no. 6, rounded to integers"),
    ):
        assert words in listed[row]
    assert [" leads to the chosen " in row for row in listed] == [True, False, False, False, False, True, True]
    assert [" front " in row for row in listed] == [False] * 6 + [True]


def test_curves_are_drawn_by_round_and_the_chosen_ones_stand_out() -> None:
    drawings = named(html_report(TRAINED), "Round") + named(html_report(TRAINED), "Integers")
    assert [drawing.findtext("title") for drawing in drawings] == [
        "Round 1: learning curves",
        "Round 2: learning curves",
        "Integers, round 1: learning curves",
    ]
    curves = [
        [line.get("class") for line in drawing.iter("polyline") if "curve" in (line.get("class") or "")]
        for drawing in drawings
    ]
    assert curves[0] == [
        "curve other-learner",
        "curve other-learner",
        "curve other-learner untaught",
        "curve chosen-learner",
    ]
    assert curves[1:] == [["curve chosen-learner"], ["curve chosen-learner"]]
    numbers = [
        [title.tail for text in drawing.iter("text") if "end-number" in (text.get("class") or "") for title in text]
        for drawing in drawings
    ]
    assert [sorted(found, key=str) for found in numbers] == [["1", "2", "3", "5"], ["6"], ["7"]]


def test_what_happened_is_marked_on_the_curve_and_told_in_words() -> None:
    (drawing,) = named(html_report(TRAINED), "Round 1")
    marks = {path.get("class"): path for path in drawing.iter("path")}
    assert ROLLED_BACK in (marks["event"].findtext("title") or "")
    assert "the worker died three times" in (marks["failure"].findtext("title") or "")
    assert len({marks[kind].get("d") for kind in ("event", "failure", "end other-end")}) == 3
    said = drawing.findtext("desc") or ""
    for number, words in (
        (1, "10.00 % at first, 90.00 % at best, 2,000 rows"),
        (2, ROLLED_BACK),
        (3, "failed: the worker died three times"),
        (4, "not trained: there was no time left to begin it"),
    ):
        assert f"{number}, plain cnn" in said
        assert words in said
    assert "Not trained: 4; the table says why." in html_report(TRAINED)


def test_numbers_beside_curves_do_not_lie_over_each_other() -> None:
    many = tuple(network(str(n), learning_curve=curve(0.1, 0.9 + 1e-4 * n)) for n in range(40))
    (drawing,) = named(html_report(report_of(training=replace(TRAINING, networks=many))), "Round 1")
    numbers = [text for text in drawing.iter("text") if "end-number" in (text.get("class") or "")]
    heights = sorted(float(text.get("y") or 0) for text in numbers)
    assert len(heights) == 12
    assert all(b - a > 12 for a, b in pairwise(heights))
    assert heights[0] > 0
    assert heights[-1] < 236


def test_a_metric_that_is_no_share_is_written_as_a_number() -> None:
    fit = network("a", learning_curve=curve(-80.0, 0.5, 0.93), validation_metric=0.93)
    text = html_report(
        report_of(
            certificate=replace(CERTIFICATE, metric="r2"),
            data={"task": "regression"},
            training=replace(TRAINING, networks=(fit,)),
        )
    )
    (drawing,) = named(text, "Round 1")
    ticks = [label.text or "" for label in drawing.iter("text") if label.get("class") == "tick"]
    assert not any("%" in tick or "-" in tick for tick in ticks)
    assert "-80 at first, 0.93 at best" in (drawing.findtext("desc") or "")
    assert "Values below 0 lie on the lower edge." in text


def test_what_each_step_gave_is_told_with_the_samples_it_was_measured_on() -> None:
    rows = rows_of(html_report(TRAINED), "What each step gave")[1:]
    assert rows == [
        "distillation plain cnn a select split 80.00 % 91.00 % 11.00 pp gained - -",
        "distillation plain cnn b validation rows 93.00 % 90.00 % 3.00 pp lost - -",
        "training of integers plain cnn f select split 95.00 % 95.00 % no difference 47 % less 20 % more",
    ]


def test_notes_augmentations_and_engine_of_the_training_are_there() -> None:
    text = html_report(TRAINED)
    for words in ("ray, 3 networks at a time", "shift, light", "augmentation &#39;mirror&#39;: not used", "5,370"):
        assert words in text
    assert "No network was trained." in html_report(UNTRAINED)


def test_the_summary_says_how_much_was_trained_and_what_each_step_gave() -> None:
    text = summary(TRAINED)
    assert "training: 5 of 7 networks trained in 101 s on 5,370 rows (ray, 3 at a time)" in text
    assert re.search(r"distillation +2 +-3\.00 pp to \+11\.00 pp +- +-", text)
    assert re.search(r"training of integers +1 +\+0\.00 pp +47 % less +20 % more", text)


def test_an_untrained_network_that_breaks_the_budget_is_told_to_train() -> None:
    assert "--train" in summary(TOO_LARGE)
    assert "--train" not in summary(replace(TOO_LARGE, training=TRAINING))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_and_marks_stand_out_from_what_is_behind_them(scheme: int) -> None:
    style = html_report(report_of()).split("<style>")[1].split("</style>")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", re.findall(r":root \{(.*?)\}", style, re.S)[scheme]))

    def contrast(front: str, back: str) -> float:
        low, high = sorted((luminance(colours[front]), luminance(colours[back])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "quiet", "chosen", "good", "warn", "bad"):
        assert min(contrast(text, "page"), contrast(text, "panel")) >= 4.5
    for text in ("good", "warn", "bad"):
        assert contrast(text, f"{text}-back") >= 4.5
    for mark in ("none", "within", "beyond", "original", "chosen"):
        assert contrast(mark, "panel") >= 3


@pytest.mark.parametrize("case", EVERY)
def test_a_piped_summary_has_no_colour_and_fits_80_columns(case: str) -> None:
    text = summary(EVERY[case])
    assert "\x1b" not in text
    assert max(len(row) for row in text.splitlines()) <= 80
    assert "certificate: " in text
    assert "Run it with" in text


def test_paths_and_snippet_are_never_broken() -> None:
    long = "/".join(["a-long-folder"] * 12)
    report = report_of(report_path=f"{long}/report.html", usage_example=f'session = ort.InferenceSession("{long}")')
    assert f"{long}/report.html\n" in summary(report)
    assert f'    session = ort.InferenceSession("{long}")\n' in summary(report)


def test_the_summary_shows_a_few_of_a_long_front_with_the_chosen_one() -> None:
    front = tuple(trial(n, title=f"candidate-{n}") for n in range(40))
    text = summary(report_of(pareto_front=front, chosen=figures(0.1, "model", sha256="trial17")))
    assert len(re.findall(r"candidate-\d+", text)) == 6
    assert re.search(r"\* +17 .*candidate-17", text)
    assert "6 of 40" in text


def test_a_terminal_that_knows_only_ascii_can_show_the_summary() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_summary(report_of(), Console(file=stream, width=80))
    stream.flush()
