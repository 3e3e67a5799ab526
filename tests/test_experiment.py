"""Experiments as files: expansion, errors, and runs that are stopped, killed, done or in use."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import marked
from rich.console import Console

from nag.errors import UserError
from nag.locks import lock
from orchestrator.config import RunConfig
from orchestrator.experiment import main
from orchestrator.experiments import jobs as experiment_jobs
from orchestrator.experiments.file import Data, read_experiment
from orchestrator.experiments.jobs import JobPlace, Search, execute
from orchestrator.experiments.view import Board
from orchestrator.runtime import Runtime
from orchestrator.search.store import RunStore
from trainers.training.task import NetworkOptions

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("*.toml"))
PRIOR = ROOT / "experiments" / "prior.toml"
COMPLETE = [file for file in FILES if file != PRIOR and file.stem != "supernet"]  # with a table
MARK = "NAG_TEST_EXPERIMENT"  # in the environment of a command and of all that it starts

# All values come from the synthetic toy space.
TOY_FILE = """
title = "toy"
seeds = 2

[settings]
space = "toy"
score = "exact"
budget = 14
n_init = 4
pool_size = 10
steps = 4

[grid]
strategy = ["uncond+sort", "mutation"]
"""


@pytest.fixture
def write(tmp_path):
    def file(text, name="test.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return file


@pytest.fixture
def toy(write):
    return write(TOY_FILE, "toy.toml")


@pytest.fixture
def pics(tmp_path):
    """A folder of images, by their names: nobody opens them."""
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "pics" / split / label).mkdir(parents=True)
            (tmp_path / "pics" / split / label / "1.png").touch()
    return tmp_path / "pics"


def keep_lines(number, path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:number]))


def configs(path, data=Data()):  # noqa: B008
    return [job.config for job in read_experiment(path, data).jobs]


def found(root):
    """{directory: [(architecture, value, predicted mean)]} of all runs."""
    return {
        out.name: list(
            zip(*(columns[name] for name in ("arch", "value", "predicted_mean")), strict=True)
        )
        for out in sorted(root.iterdir())
        if out.is_dir()
        for columns in [pq.read_table(out / "trials.parquet").to_pydict()]
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the runs of TOY_FILE, made one by one and undisturbed."""
    root = tmp_path_factory.mktemp("expected")
    (root / "toy.toml").write_text(TOY_FILE)
    for job in read_experiment(root / "toy.toml", Data()).jobs:
        assert not execute(job, JobPlace(root, "cpu", 0, ("python",))).failed
    return root


@pytest.fixture(scope="module")
def expected(finished):
    return found(finished)


class TestExpansion:
    def test_all_combinations_seed_by_seed(self, write):
        path = write(
            "seeds = 2\n[settings]\nspace = 'toy'\nbudget = 20\n"
            "[grid]\nacq = ['ei', 'pi']\nstrategy = ['random', 'mutation']\n"
        )
        assert configs(path) == [
            RunConfig(space="toy", budget=20, acq=acq, strategy=strategy, seed=seed)
            for seed in (0, 1)
            for acq in ("ei", "pi")
            for strategy in ("random", "mutation")
        ]

    def test_a_block_overrules_the_file(self, write):
        path = write(
            "seeds = 3\n[settings]\nspace = 'toy'\nbudget = 20\nacq = 'pi'\n"
            "[grid]\nstrategy = ['random', 'mutation']\n"
            "[[runs]]\nseeds = [7]\nsettings.strategy = 'guided'\ngrid.acq = ['ei', 'ucb']\n"
            "[[runs]]\nseeds = 1\nsettings.budget = 30\n"
        )
        common = RunConfig(space="toy")
        assert configs(path) == [
            replace(common, budget=30, acq="pi", strategy="random"),
            replace(common, budget=30, acq="pi", strategy="mutation"),
            replace(common, budget=20, acq="ei", strategy="guided", seed=7),
            replace(common, budget=20, acq="ucb", strategy="guided", seed=7),
        ]

    def test_without_seeds_there_is_seed_0(self, write):
        assert configs(write("[settings]\nspace = 'toy'\n")) == [RunConfig(space="toy")]

    def test_methods_by_name(self, write):
        path = write("[settings]\nspace = 'toy'\n[grid]\nmethod = ['random-search', 'gp-ucb']\n")
        assert configs(path) == [
            RunConfig(space="toy", method="random-search"),
            RunConfig(space="toy", method="gp-ucb"),
        ]

    def test_constraints_are_lists(self, write):
        path = write(
            "[settings]\nspace = 'mobilenetv3'\nconstraint = ['macs<=300e6', 'params<=6e6']\n"
            "[[runs]]\n[[runs]]\ngrid.constraint = [[], ['macs<=400e6']]\n"
        )
        assert [config.constraint for config in configs(path)] == [
            ("macs<=300e6", "params<=6e6"),
            (),
            ("macs<=400e6",),
        ]

    def test_equal_runs_of_two_panels_are_one_with_the_larger_budget(self, write):
        path = write(
            "[settings]\nspace = 'toy'\n[[runs]]\npanel = 'a'\nsettings.budget = 20\n"
            "[[runs]]\npanel = 'b'\nsettings.budget = 40\n"
            "[[runs]]\npanel = 'c'\nsettings.budget = 30\n"
        )
        experiment = read_experiment(path, Data())
        assert [member.panel for member in experiment.members] == ["a", "b", "c"]
        assert [job.trials for job in experiment.jobs] == [40]

    def test_paths_start_from_the_folder_of_the_file(self, write, tmp_path):
        path = write("[settings]\nspace = 'nasbench201'\ntable = 'data/t.parquet'\n")
        assert configs(path)[0].table == tmp_path / "data" / "t.parquet"

    def test_options_of_images_and_networks_are_settings(self, write, tmp_path, pics):
        path = write(
            "[settings]\nspace = 'nasbench201'\nevaluator = 'train'\ndata = 'pics'\n"
            "weights = 'W.pt'\nresolution = 16\nheld_out = 20\nprecision = 'float32'\n"
            "[grid]\nrecipe = ['small', 'transfer']\nepochs = [1, 2]\n"
        )
        networks = NetworkOptions(
            data=pics,
            weights=tmp_path / "W.pt",
            resolution=16,
            held_out=20,
            precision="float32",
        )
        assert [config.networks for config in configs(path)] == [
            replace(networks, recipe=recipe, epochs=epochs)
            for recipe in ("small", "transfer")
            for epochs in (1, 2)
        ]


class TestLabels:
    def test_they_say_what_a_run_is(self):
        label = Search(RunConfig(space="toy", seed=3)).label
        assert label.startswith("toy-guided-ei-seed3-")
        config = RunConfig(
            space="nasbench201",
            dataset="cifar100",
            objective="test",
            surrogate="ensemble",
            strategy="mutation",
            acq="its",
            constraint=("macs<=300e6", "params>=1e6"),
            batch_size=8,
        )
        name = "nasbench201-cifar100-test-ensemble-mutation-its-macs-max300e6-params-min1e6"
        assert Search(config).name == f"{name}-batch8-seed0"
        assert Search(RunConfig(evaluator="surrogate")).name == "mobilenetv3-guided-ei-seed0"
        supernet = RunConfig(evaluator="supernet")
        assert Search(supernet).name == "mobilenetv3-supernet-guided-ei-seed0"

    def test_they_depend_on_what_decides_the_trials_and_on_nothing_else(self):
        config = RunConfig(space="toy")
        label = Search(config).label
        assert Search(replace(config, budget=50)).label == label
        assert Search(RunConfig(space="toy", method="guided")).label == label
        for change in ({"seed": 1}, {"steps": 21}, {"pool_size": 50}, {"acq": "pi"}):
            assert Search(replace(config, **change)).label != label

    def test_of_the_one_that_needs_earlier_runs(self, tmp_path):
        with pytest.raises(UserError) as error:
            read_experiment(PRIOR, Data(tmp_path / "table.parquet", runs=tmp_path / "RUNS"))
        name = "nasbench201-cifar100-test-guided-pi-seed0-*"
        tried = f"is not a run: there is no {tmp_path / 'RUNS' / name} or {PRIOR.parent / name}"
        assert tried in str(error.value)

    @pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.stem)
    def test_of_the_files_that_ship(self, path, tmp_path):
        data = Data(tmp_path / "table.parquet")
        experiment = read_experiment(path, data)
        jobs = experiment.jobs
        assert not any(job.missing for job in jobs)
        searches = {job.config for job in jobs if isinstance(job, Search)}
        assert len({job.label for job in jobs}) == len(jobs)
        assert len({config.hash() for config in searches}) == len(searches)
        if path.stem != "smoke":
            assert {config.seed for config in searches} in (set(), set(range(20)), set(range(60)))
            assert {(config.n_init, config.budget) for config in searches} <= {(10, 100), (10, 60)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = ", r"Invalid value"),
        ("title = 'x'", r"lists nothing to run"),
        ("foo = 1\n", r"unknown key 'foo': choose from title, seeds, settings, grid, runs, comm"),
        ("seeds = 0", r"seeds 0 must be a positive number of seeds, or a list"),
        ("seeds = [1, -1]", r"seeds \[1, -1\] must be"),
        ("settings = 3", r"settings must be a table"),
        ("[settings]\nbudgt = 3", r"unknown setting 'budgt': did you mean 'budget'\? See docs/"),
        ("[settings]\npool-size = 3", r"unknown setting 'pool-size': did you mean 'pool_size'\? "),
        ("[settings]\npatience = 3", r"unknown setting 'patience': see docs/experiments\.md$"),
        ("[settings]\nnetworks = 'x'", r"unknown setting 'networks': see docs/experiments\.md$"),
        ("[settings]\nseed = 3", r"seed: write seeds = NUMBER"),
        ("[settings]\nspace = 'mars'", r"unknown space 'mars': choose from mobilenetv3, nasb"),
        ("[settings]\nacq = 'foo'", "unknown acquisition function 'foo': choose from ei, pi"),
        ("[settings]\nsampler = 'foo'", r"\[\[runs\]\] 1: unknown sampler 'foo': choose from pred"),
        ("[settings]\nbudget = 6.5", r"--budget: .*6\.5"),
        ("[settings]\nbudget = 5", r"--budget 5 is smaller than --n-init 10"),
        ("[settings]\nbudget = [20, 40]", r"settings.budget must be one value; .* grid.budget"),
        ("[settings]\nacq = 'ei'\n[grid]\nacq = ['pi']", r"acq is in both settings and grid"),
        ("[grid]\nacq = 'pi'", r"grid.acq must be a list of values"),
        ("[grid]\nacq = []", r"grid.acq must be a list of values"),
        ("[settings]\nconstraint = ['macs=3']", r"'macs=3' is not a constraint: expected QUAN"),
        ("runs = 3", r"runs must be written \[\[runs\]\]"),
        ("[[runs]]\npanel = 'p'\nfoo = 1", r"\[\[runs\]\] 1 \(p\): unknown key 'foo': choose from"),
        (
            "[[runs]]\n[[runs]]\nsettings.acq = 'x'",
            r"\[\[runs\]\] 2: unknown acquisition function 'x'",
        ),
        ("[[commands]]\nmodule = 'os'", r"unknown module 'os': choose from nag.quality, orch"),
        ("[[commands]]\nmodule = 'nag.quality'\nsettings.foo = 3", r"unknown setting 'foo': ch"),
        ("[[commands]]\nmodule = 'nag.quality'", r"commands\]\] 1: .*--space"),
        (
            "[settings]\nspace = 'toy'\n[[commands]]\nmodule = 'nag.quality'",
            r"toml: settings applies to \[\[runs\]\], of which there are none: add one, or put "
            r"the settings into \[\[commands\]\]",
        ),
        (
            "seeds = 3\n[[commands]]\nmodule = 'nag.quality'",
            r"seeds applies to \[\[runs\]\], of which there are none",
        ),
        (
            "[[commands]]\nmodule = 'nag.quality'\nsettings.out = 'x'",
            r"unknown setting 'out': choose from space, networks, rows",
        ),
    ],
)
def test_errors_name_the_file_and_the_key(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as error:
        read_experiment(path, Data())
    assert str(error.value).startswith(str(path))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.toml: No such file"):
        read_experiment(tmp_path / "none.toml", Data())
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    with pytest.raises(UserError, match=r"latin\.toml: .*utf-8"):
        read_experiment(tmp_path / "latin.toml", Data())


class TestData:
    TEXT = (
        "[[runs]]\nsettings.space = 'nasbench201'\n[[runs]]\nsettings.space = 'toy'\n"
        "settings.score = 'exact'\n"
        "[[runs]]\nsettings.space = 'mobilenetv3'\nsettings.constraint = ['latency<=25']\n"
        "[[commands]]\nmodule = 'orchestrator.guided_quality'\n"
    )
    OF_IMAGES = (
        "[[runs]]\nsettings.evaluator = 'supernet'\n"
        "[[runs]]\nsettings.evaluator = 'train'\n[[runs]]\n"
    )

    def test_images_and_weights_go_to_the_runs_on_images(self, write, tmp_path, pics):
        path = write(self.OF_IMAGES)
        missing = [job.missing for job in read_experiment(path, Data()).jobs]
        assert missing == ["--data", "--data", None]
        data = Data(data=pics)
        found = read_experiment(path, data).jobs
        assert [job.missing for job in found] == ["--weights", None, None]
        weights = tmp_path / "W.pt"
        jobs = read_experiment(path, replace(data, weights=weights)).jobs
        assert [job.missing for job in jobs] == [None, None, None]
        networks = NetworkOptions(data=pics, weights=weights)
        assert [job.config.networks for job in jobs] == [networks, networks, NetworkOptions()]

    def test_that_the_user_names_goes_before_that_of_the_file(self, write, tmp_path):
        path = write("[settings]\nspace = 'nasbench201'\ntable = 'mine.parquet'\n")
        assert configs(path, Data(tmp_path / "t.parquet"))[0].table == tmp_path / "t.parquet"

    def test_goes_to_the_runs_that_need_it(self, write, tmp_path):
        data = Data(tmp_path / "t.parquet", str(tmp_path / "l.json:160"))
        *searches, command = read_experiment(write(self.TEXT), data).jobs
        assert [job.config.table for job in searches] == [data.table, None, None]
        assert [job.config.latency_table for job in searches] == [None, None, data.latency_table]
        assert f"--table={data.table}" in command.arguments

    def test_weights_of_a_command_count_by_their_content_wherever_they_are(self, tmp_path):
        def label(folder, content):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "W.safetensors").write_bytes(content)
            path = tmp_path / folder / "test.toml"
            path.write_text(
                "[[commands]]\nmodule = 'orchestrator.guided_quality'\n"
                "settings.space = 'mobilenetv3'\nsettings.weights = 'W.safetensors'\n"
            )
            return read_experiment(path, Data()).jobs[0].label

        assert label("here", b"one") == label("elsewhere", b"one") != label("other", b"another")

    def test_counts_by_its_content_wherever_it_is(self, write, tmp_path):
        """A command of another table is another one, and one of the same table is finished."""
        path, tables = write(self.TEXT), [tmp_path / f / "t.parquet" for f in ("a", "b")]
        for table in tables:
            table.parent.mkdir()
            table.write_bytes(b"one")

        def labels(table):
            return [job.label for job in read_experiment(path, Data(table)).jobs if not job.trials]

        first = labels(tables[0])
        assert labels(tables[1]) == first
        tables[0].write_bytes(b"another")
        assert labels(tables[0]) != first

    def test_is_asked_for_before_anything_starts(self, write, tmp_path):
        path = write(self.TEXT)
        message = r"needs --table FILE for 2 of 4 runs, --latency-table FILE for 1 of 4 runs$"
        with pytest.raises(UserError, match=message):
            main(path, out=tmp_path / "runs", executor="local")
        assert not (tmp_path / "runs").exists()

    def test_is_not_needed_to_see_what_there_is(self, write, tmp_path, capsys):
        assert main(write(self.TEXT), out=tmp_path / "runs", dry_run=True) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "nasbench201-guided-ei-seed0, needs --table" in lines[0]
        assert "needs" not in lines[1]
        assert not (tmp_path / "runs").exists()

    def test_that_is_not_there_is_an_error_before_anything_runs(self, write, tmp_path):
        path = write(
            "[[runs]]\nsettings.space = 'toy'\nsettings.score = 'exact'\n"
            "[[runs]]\nsettings.space = 'nasbench201'\n"
        )
        runs, table = tmp_path / "runs", tmp_path / "none.parquet"
        with pytest.raises(UserError, match=r"none\.parquet"):
            main(path, out=runs, table=table, dry_run=True)
        assert not runs.exists()
        with pytest.raises(UserError, match=r"none\.parquet"):
            main(path, out=runs, table=table, executor="local")
        assert not runs.exists()

    def test_out_that_is_a_file_is_refused(self, toy, tmp_path):
        (tmp_path / "runs").write_text("")
        with pytest.raises(UserError, match="runs is not a folder"):
            main(toy, out=tmp_path / "runs", dry_run=True)


class TestRuns:
    def test_are_those_of_run_bo_and_finished_ones_are_skipped(
        self, toy, tmp_path, expected, capsys, monkeypatch
    ):
        runs = tmp_path / "runs"
        assert main(toy, out=runs, executor="local") == 0
        assert found(runs) == expected
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5
        assert lines[0].startswith("[1/4 runs] toy-uncond+sort-ei-seed0-")
        assert lines[4] == f"4/4 runs finished, 56 of 56 trials, in {runs}"
        for job in read_experiment(toy, Data()).jobs:
            RunStore.open(runs / job.label, job.config).close()

        monkeypatch.setattr(experiment_jobs, "build_executor", None)  # nothing is loaded
        assert main(toy, out=runs, executor="local") == 0
        assert capsys.readouterr().out.startswith("4 of 4 runs already finished\n4/4 runs")
        assert main(toy, out=runs, dry_run=True) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines[:4]] == [["finished", "14/14"]] * 4
        assert lines[4] == "toy: 4 runs, 4 finished; 56 trials, 0 to do"

    def test_a_larger_budget_prolongs_them(self, write, tmp_path):
        runs, short = tmp_path / "runs", TOY_FILE.replace("budget = 14", "budget = 8")
        assert main(write(short, "short.toml"), out=runs, executor="local") == 0
        before = found(runs)
        assert main(write(TOY_FILE, "long.toml"), out=runs, executor="local") == 0
        after = found(runs)
        assert {name: trials[:8] for name, trials in after.items()} == before
        assert {len(trials) for trials in after.values()} == {14}
        names = {path.name for path in runs.glob("*.json")}
        assert names == {"experiment-short.json", "experiment-long.json"}

    def test_manifest(self, toy, tmp_path):
        runs = tmp_path / "runs"
        assert main(toy, out=runs, executor="local") == 0
        manifest = json.loads((runs / "experiment-toy.json").read_text())
        about = [manifest[key] for key in ("schema", "title", "file")]
        assert about == [1, "toy", str(toy)]
        assert len(manifest["sha256"]) == 64
        assert "torch" in manifest["versions"]
        assert {run["label"] for run in manifest["runs"]} == found(runs).keys()
        for run in manifest["runs"]:
            record = json.loads((runs / run["label"] / "config.json").read_text())
            assert (run["hash"], run["config"]) == (record["hash"], record["config"])
            assert run["panel"] == "toy"

    def test_a_manifest_of_another_file_is_not_replaced_in_silence(
        self, write, tmp_path, finished, capsys
    ):
        runs, toy = tmp_path / "runs", write(TOY_FILE, "toy.toml")
        shutil.copytree(finished, runs)
        (tmp_path / "other").mkdir()
        (tmp_path / "moved").mkdir()
        manifest = runs / "experiment-toy.json"

        def warnings(file):
            assert main(file, out=runs, executor="local") == 0
            return [s for s in capsys.readouterr().out.splitlines() if s.startswith("warning")]

        assert warnings(toy) == []
        assert warnings(toy) == []
        assert warnings(write(TOY_FILE, "moved/toy.toml")) == []
        assert warnings(write(TOY_FILE.replace("seeds = 2", "seeds = 1"), "moved/toy.toml")) == []
        (warning,) = warnings(write(TOY_FILE, "other/toy.toml"))
        assert warning.startswith(
            f"warning: {manifest} described {tmp_path / 'moved' / 'toy.toml'} and is replaced: "
        )
        manifest.write_text("rubbish")
        assert warnings(toy) == []
        assert json.loads(manifest.read_text())["file"] == str(toy)

    @pytest.mark.parametrize("method", ["guided", "bananas", "random-search"])
    def test_the_manifest_knows_methods_by_name(self, method):
        assert Search(RunConfig(space="toy", method=method)).record["method"] == method

    def test_sigterm_is_taken_for_an_interruption(self, toy, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(experiment_jobs, "run_study", lambda *_, **__: os.kill(os.getpid(), 15))
        with pytest.raises(SystemExit, match="130"):
            main(toy, out=tmp_path / "runs", executor="local")
        out = capsys.readouterr().out
        assert out.startswith("interrupted: 0/4 runs finished, 0 of 56 trials, in ")
        assert out.endswith("; repeat the command to continue\n")

    def test_one_that_fails_does_not_stop_the_others(self, toy, tmp_path, capsys):
        runs = tmp_path / "runs"
        first, *others = (job.label for job in read_experiment(toy, Data()).jobs)
        (runs / first).mkdir(parents=True)
        (runs / first / "notes.txt").write_text("somebody else's")
        assert main(toy, out=runs, executor="local") == 1
        lines = capsys.readouterr().out.splitlines()
        reason = f"{runs / first} holds other files: choose another --out"
        assert lines[-2:] == [
            f"failed: {first}: {reason}",
            f"3/4 runs finished, 42 of 56 trials, in {runs}",
        ]
        assert not any(line.startswith("failed") for line in lines[:-2])
        assert found_labels(runs) == set(others)

    def test_one_without_a_success_fails_whenever_it_is_repeated(self, write, tmp_path, capsys):
        table = tmp_path / "t.parquet"
        pq.write_table(pa.table({"arch": ["of another space"], "c10_valid_200": [50.0]}), table)
        path = write(
            "[settings]\nspace = 'nasbench201'\nmethod = 'random-search'\n"
            "n_init = 2\nbudget = 3\ntable = 't.parquet'\n"
        )
        runs, (job,) = tmp_path / "runs", read_experiment(path, Data()).jobs
        for _ in range(2):
            assert main(path, out=runs, executor="local") == 1
            *_, reason, last = capsys.readouterr().out.splitlines()
            trials = runs / job.label / "trials.parquet"
            assert reason == f"failed: {job.label}: no evaluation succeeded, see {trials}"
            assert last == f"0/1 run finished, 3 of 3 trials, in {runs}"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                Path.unlink,
                "the journal of {out} is incomplete, with 0 of the 14 trials in trials.parquet",
            ),
            (
                partial(keep_lines, 2),
                "the journal of {out} is incomplete, with 1 of the 14 trials in",
            ),
            (
                lambda path: path.write_text("rubbish\n{}\n"),
                "{out}/journal.jsonl, line 1 is damaged",
            ),
        ],
    )
    def test_a_finished_one_whose_journal_is_damaged_fails(
        self, toy, tmp_path, finished, expected, capsys, damage, message
    ):
        runs = tmp_path / "runs"
        shutil.copytree(finished, runs)
        out = runs / read_experiment(toy, Data()).jobs[1].label
        damage(out / "journal.jsonl")
        for _ in range(2):
            assert main(toy, out=runs, executor="local") == 1
            first, *_, reason, last = capsys.readouterr().out.splitlines()
            assert first == "3 of 4 runs already finished"
            assert reason.startswith(f"failed: {out.name}: {message.format(out=out)}")
            assert reason.endswith(f": restore it, remove {out}, or choose another --out")
            assert last.startswith("3/4 runs finished, ")
        assert found(runs) == expected
        shutil.rmtree(out)
        assert main(toy, out=runs, executor="local") == 0
        assert found(runs) == expected

    def test_a_finished_one_whose_table_is_lost_gets_it_again(
        self, toy, tmp_path, finished, expected
    ):
        runs = tmp_path / "runs"
        shutil.copytree(finished, runs)
        job = read_experiment(toy, Data()).jobs[0]
        (runs / job.label / "trials.parquet").unlink()
        assert job.progress(runs) == (14, False)
        assert not execute(job, JobPlace(runs, "cpu", 0, ("python",))).failed
        assert job.progress(runs) == (14, True)
        assert found(runs) == expected

    def test_our_own_bugs_leave_a_traceback(self, toy, tmp_path, monkeypatch):
        job = read_experiment(toy, Data()).jobs[0]
        place = JobPlace(tmp_path, "cpu", 0, ("python",))
        with monkeypatch.context() as patch:
            patch.setattr(experiment_jobs, "run_study", lambda *_, **__: {}["missing"])
            result = execute(job, place)
        trace = tmp_path / f"{job.label}.error"
        assert (result.failed, result.text) == (True, f"KeyError: 'missing' (see {trace})")
        assert "Traceback" in trace.read_text()
        assert not execute(job, place).failed
        assert not trace.exists()

    def test_a_folder_that_is_not_shared_is_named(self, toy, tmp_path):
        job = read_experiment(toy, Data()).jobs[0]
        result = execute(job, JobPlace(tmp_path / "elsewhere", "cpu", 0, ("python",)))
        assert result.failed
        assert result.text.startswith(f"there is no {tmp_path / 'elsewhere'} on ")

    def test_a_space_may_be_exhausted(self, write, tmp_path):
        path = write(
            "[settings]\nspace = 'toy'\nmethod = 'random-search'\nscore = 'exact'\nbudget = 200\n"
        )
        (job,) = read_experiment(path, Data()).jobs
        result = execute(job, JobPlace(tmp_path, "cpu", 0, ("python",)))
        assert not result.failed
        assert result.text.endswith("%, the space is exhausted after 144 trials")
        assert job.progress(tmp_path) == (144, True)


def found_labels(runs):
    return {out.name for out in runs.iterdir() if (out / "trials.parquet").exists()}


class TestLocks:
    """A run that another process works on."""

    @pytest.fixture
    def job(self, toy):
        return read_experiment(toy, Data()).jobs[1]

    @pytest.fixture
    def store(self, job, tmp_path):
        store = RunStore.open(tmp_path / job.label, job.config)
        yield store
        store.close()

    def test_is_left_alone(self, job, store, tmp_path, monkeypatch):
        monkeypatch.setattr(experiment_jobs, "lock", partial(lock, patience=0.3))
        result = execute(job, JobPlace(tmp_path, "cpu", 0, ("python",)))
        expected = f"{tmp_path / job.label} is in use by another process"
        assert (result.failed, result.text) == (True, expected)
        assert (store.out / "journal.jsonl").read_bytes() == b""

    def test_is_waited_for_where_its_process_is_ending(self, job, store, tmp_path):
        timer = threading.Timer(0.5, store.close)
        timer.start()
        assert not execute(job, JobPlace(tmp_path, "cpu", 0, ("python",))).failed
        timer.join()

    def test_a_command_too(self, write, tmp_path, monkeypatch):
        monkeypatch.setattr(experiment_jobs, "lock", partial(lock, patience=0.3))
        (job,) = read_experiment(write(COMMAND_FILE), Data()).jobs
        out = tmp_path / job.label
        out.mkdir()
        (out / "command.log").write_text("going on")
        with (out / "command.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            result = execute(job, JobPlace(tmp_path, "cpu", 0, ("python",)))
        assert result.failed
        assert result.text.endswith("is in use by another process")
        assert (out / "command.log").read_text() == "going on"

    def test_what_another_process_has_finished_is_not_done_again(self, write, tmp_path):
        (job,) = read_experiment(write(COMMAND_FILE), Data()).jobs
        (tmp_path / job.label).mkdir()
        (tmp_path / job.label / "command.json").write_text("{}")
        assert not execute(job, JobPlace(tmp_path, "cpu", 0, ("python",))).failed
        assert not (tmp_path / job.label / "command.log").exists()


COMMAND_FILE = """
[[commands]]
module = "nag.quality"
settings.space = "toy"
settings.rows = "exact"
settings.num = 20
settings.distance_num = 50
settings.seeds = 2
"""


class TestCommands:
    def test_run_once(self, write, tmp_path, capsys):
        path, runs = write(COMMAND_FILE), tmp_path / "runs"
        assert main(path, out=runs, executor="local") == 0
        (job,) = read_experiment(path, Data()).jobs
        out = runs / job.label
        assert job.label.startswith("quality-toy-")
        assert (out / "quality-toy.csv").exists()
        record = json.loads((out / "command.json").read_text())
        assert record["command"].startswith("python -m nag.quality --distance-num=50 --num=20 ")
        assert capsys.readouterr().out.endswith(f"1/1 run finished, in {runs}\n")
        before = (out / "quality-toy.csv").stat().st_mtime_ns
        assert main(path, out=runs, executor="local") == 0
        assert (out / "quality-toy.csv").stat().st_mtime_ns == before

    def test_networks_may_move_and_when_they_change_it_is_run_again(self, tmp_path):
        def command(folder):
            networks = tmp_path / folder / "networks"
            networks.mkdir(parents=True)
            (networks / "toy-default.safetensors").write_bytes(b"one")
            path = tmp_path / folder / "test.toml"
            path.write_text(COMMAND_FILE + 'settings.networks = "networks"\n')
            (job,) = read_experiment(path, Data()).jobs
            return job, networks

        (here, _), (elsewhere, networks) = command("here"), command("elsewhere")
        runs = tmp_path / "runs"
        runs.mkdir()
        assert not execute(here, JobPlace(runs, "cpu", 0, ("python",))).failed
        assert elsewhere.label == here.label
        (networks / "nasbench201-default.safetensors").touch()  # of another space
        assert elsewhere.progress(runs)[1]
        (networks / "toy-default.safetensors").write_bytes(b"another")
        assert not elsewhere.progress(runs)[1]
        assert here.progress(runs)[1]
        assert not execute(elsewhere, JobPlace(runs, "cpu", 0, ("python",))).failed
        assert elsewhere.progress(runs)[1]

    def test_failures_are_one_line(self, write, tmp_path, capsys):
        path, runs = write(COMMAND_FILE.replace('"exact"', '"rubbish"')), tmp_path / "runs"
        assert main(path, out=runs, executor="local") == 1
        (job,) = read_experiment(path, Data()).jobs
        failure = capsys.readouterr().out.splitlines()[-2]
        assert failure.startswith(f"failed: {job.label}: unknown row 'rubbish': choose from exact")
        assert failure.endswith(f"(exit code 2, see {runs / job.label / 'command.log'})")
        assert not job.progress(runs)[1]


class TestBoard:
    def test_a_terminal_gets_a_bar(self, toy, tmp_path):
        jobs = read_experiment(toy, Data()).jobs
        console = Console(force_terminal=True, width=120, record=True, quiet=False, file=Sink())
        board = Board(console, jobs, tmp_path)
        with board.live():
            board.ended(jobs[0], execute(jobs[0], JobPlace(tmp_path, "cpu", 0, ("python",))))
        text = console.export_text()
        assert "14/56" in text
        assert f"[1/4 runs] {jobs[0].label}: best " in text
        assert board.unfinished == jobs[1:]

    def test_runs_begun_earlier_count(self, toy, tmp_path):
        jobs = read_experiment(toy, Data()).jobs
        short = Search(replace(jobs[0].config, budget=6))
        execute(short, JobPlace(tmp_path, "cpu", 0, ("python",)))
        assert str(Board(Console(), jobs, tmp_path)).startswith("0/4 runs finished, 6 of 56 trials")

    def test_another_run_in_the_directory_does_not(self, toy, tmp_path):
        job = read_experiment(toy, Data()).jobs[1]
        execute(job, JobPlace(tmp_path, "cpu", 0, ("python",)))
        assert job.progress(tmp_path) == (14, True)
        record = tmp_path / job.label / "config.json"
        record.write_text(record.read_text().replace(job.config.hash(), "0" * 64))
        assert job.progress(tmp_path) == (0, False)


class Sink:
    """Where a terminal would be."""

    def write(self, text):
        return len(text)

    def flush(self):
        pass


class Command:
    """An experiment in a process of its own; all it starts is known by its environment."""

    def __init__(self, file, runs, *options):
        self.runs, self._mark = runs, uuid.uuid4().hex
        inherited = {name: x for name, x in os.environ.items() if name != "RAY_ADDRESS"}
        arguments = ["-m", "orchestrator.experiment", str(file), "--out", str(runs), *options]
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=inherited | {"OMP_NUM_THREADS": "1", MARK: self._mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self):
        stdout, stderr = self.process.communicate(timeout=500)
        return self.process.returncode, stdout, stderr

    def pids(self, name):
        """Processes with this name that the command has started."""
        return [pid for found, pid in marked(f"{MARK}={self._mark}") if found == name]

    def wait_for(self, outcomes):
        """Until so many trials are finished in all."""
        while sum(path.read_bytes().count(b'"finished"') for path in self.journals()) < outcomes:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.01)

    def journals(self):
        return list(self.runs.glob("*/journal.jsonl"))


LOCAL = ("--executor", "local")
RAY = ("--executor", "ray", "--auth", "disabled")


@contextmanager
def last_run_in_use(file, runs):
    """Meanwhile a command cannot end: it waits for the last of the runs, up to half a minute."""
    job = read_experiment(file, Data()).jobs[-1]
    with closing(RunStore.open(runs / job.label, job.config)):
        yield


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_experiment_continues(toy, tmp_path, expected, stop, code):
    runs = tmp_path / "runs"
    with last_run_in_use(toy, runs):
        command = Command(toy, runs, *LOCAL)
        command.wait_for(20)  # in the second of four runs, or later
        command.process.send_signal(stop)
        returned, stdout, stderr = command.finish()
    assert (returned, stderr) == (code, "")
    ended = sum(job.progress(runs)[1] for job in read_experiment(toy, Data()).jobs)
    assert 1 <= ended < 4
    if stop != signal.SIGKILL:
        last = stdout.splitlines()[-1]
        assert last.startswith(
            tuple(  # the last one may be written but not yet counted
                f"interrupted: {counted}/4 runs finished, " for counted in (ended - 1, ended)
            )
        )
        assert last.endswith(f" of 56 trials, in {runs}; repeat the command to continue")
    code, stdout, stderr = Command(toy, runs, *LOCAL).finish()
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"{ended} of 4 runs already finished\n")
    assert found(runs) == expected


def test_errors_on_the_command_line_are_one_line(toy, tmp_path):
    code, stdout, stderr = Command(toy, tmp_path / "runs", "--jobs", "0").finish()
    assert (code, stdout, stderr) == (2, "", "error: --jobs must be at least 1\n")
    with pytest.raises(UserError, match="--gpu 2 must be between 0 and 1"):
        main(toy, out=tmp_path / "runs", gpu=2)
    with pytest.raises(UserError, match="one run after the other: --jobs requires ray"):
        main(toy, out=tmp_path / "runs", executor="local", jobs=4)
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
@pytest.mark.slow
class TestOnRay:
    def test_smoke(self, tmp_path):
        runs, file = tmp_path / "runs", ROOT / "experiments" / "smoke.toml"
        code, stdout, stderr = Command(file, runs, *RAY).finish()
        assert (code, stderr) == (0, ""), stdout
        assert all(job.progress(runs)[1] for job in read_experiment(file, Data()).jobs)

    def test_what_kills_its_workers_is_given_up(self, monkeypatch):
        from orchestrator.executors.cluster import ClusterError
        from orchestrator.executors.tasks import RayTasks

        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        runtime = Runtime(auth="disabled", dashboard=False, workers=1, retries=1)
        with closing(RayTasks(runtime)) as tasks:
            functions = [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 7]
            found = dict(pair for _, ended in tasks.run(functions) for pair in ended)
        assert found[1] == 7
        assert isinstance(found[0], ClusterError)
        assert str(found[0]) == "the worker was lost (WorkerCrashedError)"
        with pytest.raises(ClusterError, match=r"a task needs 1 CPU, 0\.5 GPU; the cluster has"):
            RayTasks(replace(runtime, gpus_per_eval=0.5))

    def test_a_killed_worker_costs_nothing(self, toy, tmp_path, expected):
        runs = tmp_path / "runs"
        with last_run_in_use(toy, runs):
            command = Command(toy, runs, *RAY)
            command.wait_for(8)
            workers = command.pids("ray::_call")
            assert workers
            for pid in workers:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)
        code, stdout, stderr = command.finish()
        assert (code, stderr) == (0, ""), stdout
        assert found(runs) == expected
        config = json.loads((next(runs.glob("toy-*")) / "config.json").read_text())
        assert config["command"].startswith("python -m orchestrator.experiment ")

    @pytest.mark.parametrize(("stop", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
    def test_a_stopped_experiment_continues(self, toy, tmp_path, expected, stop, code):
        runs = tmp_path / "runs"
        with last_run_in_use(toy, runs):
            command = Command(toy, runs, *RAY)
            command.wait_for(10)
            command.process.send_signal(stop)
            returned, stdout, stderr = command.finish()
        assert (returned, "Traceback" in stderr) == (code, False)
        if stop == signal.SIGINT:
            assert "; repeat the command to continue\n" in stdout
        code, stdout, stderr = Command(toy, runs, *LOCAL).finish()  # at once
        assert (code, stderr) == (0, ""), stdout
        assert found(runs) == expected

    def test_two_at_once(self, toy, tmp_path, expected, capsys):
        """Runs in use are waited for, or reported; none is damaged."""
        runs = tmp_path / "runs"
        first = Command(toy, runs, *RAY, "--jobs", "1")
        first.wait_for(1)
        second = Command(toy, runs, *LOCAL)
        for code, stdout, stderr in (first.finish(), second.finish()):
            assert stderr == ""
            assert code == 0 or "is in use by another process" in stdout
        assert Command(toy, runs, *LOCAL).finish()[0] == 0
        assert found(runs) == expected
