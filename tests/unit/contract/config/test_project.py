"""The project file: what it says, and how it refuses."""

from pathlib import Path

import pytest

from edgewright.contract.config.project import load_project, parse_project
from edgewright.contract.errors import ProjectError

BASE = '[model]\npath = "m.onnx"\n[data]\nsource = "d.npz"\n'
CLASS = BASE + '[[device_class]]\nname = "watch"\n'

TRAINING = '[training]\nsource = "t.npz"\n'

FULL = """
[model]
path = "models/m.onnx"

[data]
source = "d.csv"
label = "kind"
features = ["a", "b"]
group = "who"
task = "classification"

[metric]
name = "accuracy"

[preprocess]
dtype = "int16"
scale = 3.0517578125e-05
mean = [0.1]
layout = "NHWC"

[training]
source = "t.csv"
teachers = ["big.onnx", "models/other.onnx"]
recipe = "mine:recipe"
engine = "ray://head:10001"
workers = 3
temperature = 2
feature_loss_weight = 0.5
relation_loss_weight = 0.25

[[device_class]]
name = "watch"
target = "ssh://me@watch:2222"
threads = 2
providers = ["CPUExecutionProvider"]
watts_per_core = "500mW"

[device_class.budget]
latency_p50 = "5ms"
latency_p95 = "8 ms"
peak_memory = "20MiB"
size = "200KB"
energy = "2mJ"
min_metric = 0.9
max_drop = 0.01
confidence = 0.99

[[device_class]]
name = "phone"

[search]
time_limit = "2min"
seed = 7
trials = 40

[pilot]
devices = 5
days = 3
"""


def test_every_key_arrives_in_base_units() -> None:
    project = parse_project(FULL)
    watch = project.device_class("watch")
    assert (watch.target, watch.threads, watch.watts_per_core) == ("ssh://me@watch:2222", 2, 0.5)
    budget = watch.budget
    assert (budget.latency_p50_seconds, budget.latency_p95_seconds, budget.energy_j) == (0.005, 0.008, 0.002)
    assert (budget.peak_memory_bytes, budget.size_bytes) == (20 * 2**20, 200_000)
    assert (budget.min_metric, budget.max_drop, budget.confidence) == (0.9, 0.01, 0.99)
    assert (project.search.time_limit_seconds, project.search.seed, project.search.trials) == (120, 7, 40)
    assert (project.data.features, project.data.task) == (("a", "b"), "classification")
    assert project.preprocess is not None
    assert project.preprocess.scale == 2**-15
    assert (project.pilot.devices, project.pilot.days, project.pilot.max_rollbacks) == (5, 3, 0)


def test_a_small_file_gets_defaults_and_the_default_class_always_exists() -> None:
    project = parse_project(BASE)
    assert project.search.time_limit_seconds == 120
    assert project.device_class("default").budget.max_drop is None
    assert parse_project(CLASS).device_class("default").target == "local"


def test_what_to_train_with_arrives() -> None:
    training = parse_project(FULL).training
    assert training is not None
    assert training.source == "t.csv"
    assert training.teachers == ("big.onnx", "models/other.onnx")
    assert (training.recipe, training.engine, training.workers) == ("mine:recipe", "ray://head:10001", 3)
    assert (training.temperature, training.feature_loss_weight, training.relation_loss_weight) == (2.0, 0.5, 0.25)


def test_without_a_section_on_training_nothing_is_trained() -> None:
    assert parse_project(BASE).training is None
    usual = parse_project(BASE + TRAINING).training
    assert usual is not None
    assert (usual.teachers, usual.recipe, usual.engine, usual.workers) == ((), None, "local", None)


def test_an_unknown_device_class_lists_those_present() -> None:
    with pytest.raises(ProjectError, match=r"Use one of default, watch, phone \(did you mean 'watch'\?\)"):
        parse_project(FULL).device_class("wach")


def test_a_class_named_default_replaces_the_built_in_one() -> None:
    project = parse_project(BASE + '[[device_class]]\nname = "default"\nthreads = 3\n')
    assert project.device_class("default").threads == 3


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        (BASE + "[serch]\n", "edgewright.toml: serch (line 5): unknown key", "did you mean 'search'?"),
        (BASE + 'label = "y"\nlable = "y"\n', "data.lable (line 6): unknown key", "did you mean 'label'?"),
        (CLASS + "treads = 1\n", "device_class[1].treads (line 7)", "did you mean 'threads'?"),
        (
            CLASS + '[[device_class]]\nname = "b"\n[device_class.budget]\nlatency_p96 = "1ms"\n',
            "device_class[2].budget.latency_p96 (line 10): unknown key",
            "did you mean 'latency_p95'?",
        ),
        (CLASS + 'budget.latency_p95 = "5KB"\n', "device_class[1].budget.latency_p95 (line 7): '5KB'", "ms"),
        (CLASS + "budget.latency_p95 = 5\n", "budget.latency_p95 (line 7): expected str, got int", '"8ms"'),
        (CLASS + 'budget.size = "200"\n', "budget.size (line 7): '200' is not a size", "200KB"),
        (CLASS + 'budget.size = "0KB"\n', "budget.size (line 7): '0KB' is not a possible", "positive"),
        (CLASS + 'budget.energy = "-1mJ"\n', "budget.energy (line 7): '-1mJ' is not a possible", "positive"),
        (CLASS + "budget.max_drop = 0\n", "device_class[1].budget: max_drop is 0", "0.01 for one percentage"),
        (CLASS + "budget.max_drop = nan\n", "budget: max_drop is nan", "fraction"),
        (CLASS + 'budget.max_drop = "1%"\n', "budget.max_drop (line 7): expected float, got str", "without quotes"),
        (CLASS + "budget.min_metric = inf\n", "budget.min_metric (line 7) is inf", "finite"),
        (CLASS + "budget.confidence = 1.0\n", "budget: confidence is 1.0", "0.95"),
        (CLASS + "budget = 3\n", "device_class[1].budget (line 7)", "brackets"),
        (CLASS + "threads = 0\n", "device_class[1] (line 5): device class 'watch' has 0 threads", "how many"),
        (CLASS + 'target = "watch"\n', "has target 'watch'", "ssh://user@host"),
        (CLASS + 'watts_per_core = "3"\n', "watts_per_core (line 7): '3' is not a power", "3W"),
        (BASE + "[[device_class]]\nthreads = 1\n", "device_class[1] (line 5) has no name", "Add name"),
        (
            CLASS + '[[device_class]]\nname = "watch"\n',
            "device_class[2].name (line 8) is 'watch' again",
            "own name",
        ),
        (BASE + '[[device_class]]\nname = "a b"\n', "device_class[1].name (line 6) is 'a b'", "no spaces"),
        (BASE + '[device_class]\nname = "a"\n', "device_class (line 5) must be a list", "[[device_class]]"),
        (BASE + '[search]\ntime_limit = "soon"\n', "search.time_limit (line 6)", "ms"),
        (BASE + "[search]\ntime_limit = 60\n", "search.time_limit (line 6): expected str", '"120s"'),
        (BASE + "[search]\nseed = -1\n", "search (line 5): seed is -1", "number"),
        (BASE + "[search]\ntrials = 0\n", "search (line 5): trials is 0", "Leave it out"),
        (BASE + "[pilot]\ndevices = 0\n", "pilot (line 5): devices is 0", "whole number"),
        (BASE + "[pilot]\nmax_failure_rate = 2.0\n", "pilot (line 5): max_failure_rate is 2.0", "share"),
        (BASE + "[preprocess]\nscale = 0\n", "preprocess (line 5): preprocess scale is 0", "1/255"),
        (BASE + '[preprocess]\nlayout = "HWC"\n', "preprocess.layout (line 6)", "NHWC, NCHW"),
        (BASE + "[preprocess]\nsize = [1]\n", "preprocess.size (line 6)", "brackets"),
        (BASE + 'task = "clasify"\n', "data.task (line 5): invalid enum value 'clasify'", "classification, regr"),
        ('[model]\npath = "m"\n', "has no section [data]", "source"),
        ('[data]\nsource = "m"\n', "has no section [model]", "path"),
        (BASE + "[training]\n", "training (line 5) has no source", "Add source"),
        (BASE + TRAINING + 'reciep = "a:b"\n', "training.reciep (line 7): unknown key", "did you mean 'recipe'?"),
        (BASE + TRAINING + 'teachers = "t.onnx"\n', "training.teachers (line 7)", "brackets"),
        (BASE + TRAINING + "workers = 0\n", "training (line 5): workers is 0", "one per core"),
        (BASE + TRAINING + "temperature = 0\n", "training (line 5): temperature is 0", "Leave it out"),
        (BASE + TRAINING + "temperature = nan\n", "temperature", "Leave it out"),
        (
            BASE + TRAINING + "feature_loss_weight = -1.0\n",
            "training (line 5): feature_loss_weight is -1",
            "Leave it out",
        ),
        (
            BASE + TRAINING + "relation_loss_weight = 1e9\n",
            "training (line 5): relation_loss_weight is 1e+09",
            "Leave it out",
        ),
        ("[model]\n[data]\n", "model (line 1) has no path", "Add path"),
        ('model = "m.onnx"\n[data]\nsource = "d"\n', "model (line 1) must be a table", "[model]"),
        (BASE + "[search\n", "is not valid TOML", "line"),
        (BASE + BASE, "is not valid TOML", "line"),
    ],
)
def test_what_may_not_be_is_refused_with_place_and_remedy(text: str, place: str, remedy: str) -> None:
    with pytest.raises(ProjectError) as raised:
        parse_project(text)
    assert raised.value.exit_code == 2
    assert raised.value.message.startswith("edgewright.toml")
    assert place in raised.value.message
    assert remedy in str(raised.value)


def test_paths_start_at_the_files_folder_and_functions_stay(tmp_path: Path) -> None:
    path = tmp_path / "edgewright.toml"
    path.write_text(FULL)
    project = load_project(path)
    assert project.model.path == str(tmp_path / "models/m.onnx")
    assert project.data.source == str(tmp_path / "d.csv")
    assert project.training is not None
    assert project.training.source == str(tmp_path / "t.csv")
    assert project.training.teachers == (str(tmp_path / "big.onnx"), str(tmp_path / "models/other.onnx"))
    path.write_text(BASE.replace("d.npz", "my.data:load").replace("m.onnx", "my.model:make") + TRAINING)
    project = load_project(path)
    assert (project.data.source, project.model.path) == ("my.data:load", "my.model:make")
    path.write_text(BASE + TRAINING.replace("t.npz", "my.data:training"))
    training = load_project(path).training
    assert training is not None
    assert training.source == "my.data:training"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="'edgewright init'"):
        load_project(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ProjectError, match="not UTF-8"):
        load_project(tmp_path / "latin.toml")
    with pytest.raises(ProjectError, match="cannot be read"):
        load_project(tmp_path)
