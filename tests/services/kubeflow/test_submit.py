"""What a submit sends to Kubeflow: no passwords, a cache key that follows the content, schedules of six fields."""

from __future__ import annotations

import io
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
import yaml

from rareclass.adapters import cluster, tables
from rareclass.adapters.cluster import Access, Kubeflow, Placement
from rareclass.config import Config, parse
from rareclass.errors import ConfigError
from rareclass.services.kubeflow import submit
from rareclass.services.serving import deploy


def config(path: str = "demo:flights", **sections: object) -> Config:
    return parse({"name": "m", "data": {"path": path, "target": "y"}, **sections})


def test_what_a_secret_gives_to_the_steps_is_not_in_the_parameters():
    made = config(
        store={"url": "postgresql://me:hush@db/x"},
        cluster={"secrets": [{"name": "s", "env": {"RARECLASS_STORE_URL": "url"}}]},
    )
    job = submit.job(made, key="k")
    assert "hush" not in json.dumps(job.arguments)
    assert job.placement.secrets == {"s": {"RARECLASS_STORE_URL": "url"}}


def test_a_password_that_every_reader_of_the_run_would_see_is_refused():
    with pytest.raises(ConfigError, match=r"store\.url holds a password"):
        submit.job(config(store={"url": "postgresql://me:hush@db/x"}), key="k")
    with pytest.raises(ConfigError, match=r"cluster\.env\.DB_PASSWORD holds a password"):
        submit.job(config(cluster={"env": {"DB_PASSWORD": "hush"}}), key="k")


def test_the_parameter_is_a_configuration_again():
    made = config(
        "postgresql://me:hush@db/x",
        cluster={"secrets": [{"name": "s", "env": {"RARECLASS_DATA_PATH": "path"}}]},
    )
    again = parse(json.loads(submit.job(made, key="k").arguments["config"]))
    assert (again.name, again.data.path) == ("m", "from RARECLASS_DATA_PATH")


@pytest.mark.parametrize(
    ("dask", "image"),
    [({}, "registry/steps:2"), ({"image": "own:1"}, "own:1"), ({"scheduler": "tls://there:8786"}, None)],
)
def test_a_submit_says_which_image_the_workers_of_its_steps_have(dask: dict[str, str], image: str | None):
    wanted = config(cluster={"image": "registry/steps:2"}, compute={"engine": "dask", "dask": dask})
    sent = parse(json.loads(submit.job(wanted, key="k").arguments["config"]))
    assert sent.compute.dask.image == image


def test_the_version_of_the_data_follows_its_content_and_live_sql_has_none(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    pd.DataFrame({"y": [0, 1]}).to_parquet(file)
    first = tables.data_version(str(file))
    assert first == tables.data_version(str(file)) is not None
    pd.DataFrame({"y": [0, 1, 1]}).to_parquet(file)
    assert tables.data_version(str(file)) != first
    assert tables.data_version("postgresql://db/x") is None
    assert tables.data_version(str(tmp_path / "absent.parquet")) is None
    assert tables.data_version("demo:flights") is not None


def test_reading_is_cached_only_when_the_version_of_the_data_is_known(tmp_path: Path):
    file = tmp_path / "rows.csv"
    file.write_text("a,y\n1,0\n")
    assert submit.job(config(str(file)), key="k").placement.cache
    assert not submit.job(config("sqlite:///x.db"), key="k").placement.cache
    assert not submit.job(config(str(file)), key="k", cache=False).placement.cache
    repair = {"number": 1, "now": "2026-01-01T00:00:00+00:00", "reason": "r"}
    assert not submit.job(config(str(file)), key="k", repair=repair).placement.cache


@pytest.mark.parametrize("cron", ["0 2 * * *", "daily", ""])
def test_a_schedule_without_six_fields_is_refused(cron: str):
    with pytest.raises(ConfigError, match="6, the first are seconds"):
        submit.checked_cron(cron)


def test_golden_rows_become_a_request_that_monitoring_skips():
    import small_model

    model = small_model.model()
    body = deploy.request(model, model.golden)
    assert body["parameters"] == {"missing": True, "propensity": 0.0}
    assert {each["name"]: each["datatype"] for each in body["inputs"]} == {"amount": "FP32", "channel": "BYTES"}
    assert all(each["shape"] == [3] for each in body["inputs"])


def test_the_first_repairs_of_two_ledgers_are_two_runs_and_two_attempts_of_one_are_one() -> None:
    monday, tuesday = datetime(2026, 1, 5, 12, 0, 1, tzinfo=UTC), datetime(2026, 1, 6, 12, 0, 1, tzinfo=UTC)
    assert submit.repair_key("m", 1, monday) == submit.repair_key("m", 1, monday)
    assert len({submit.repair_key("m", *each) for each in ((1, monday), (1, tuesday), (2, monday))}) == 3


class Users(ThreadingHTTPServer):
    """The first requests that a Kubeflow with users gets: who asked what."""

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), UsersHandler)
        self.token, self.seen, self.pipelines = token, [], set()


class UsersHandler(BaseHTTPRequestHandler):
    """What a submit asks of the API: nothing is there yet, and what is made gets an id."""

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.partition("?")[0].removeprefix("/apis/v2beta1/")
        self.server.seen.append((self.command, path, self.path, headers, body))
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        kind = path.split("/")[-1]
        said = {
            "healthz": {"multi_user": True},
            "upload_version": {"pipeline_id": "p", "pipeline_version_id": "v"},
            "versions": {},
            "pipelines": self._pipelines(body) if kind == "pipelines" else {},
            "experiments": {} if self.command == "GET" else {"experiment_id": "e"},
            "runs": {} if self.command == "GET" else {"run_id": "r"},
            "recurringruns": {} if self.command == "GET" else {"recurring_run_id": "s"},
        }.get(kind)
        status = 401 if not known else 404 if said is None else 200
        text = json.dumps(said if status == 200 else {"error": "who are you?" if status == 401 else path}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _pipelines(self, body: bytes) -> dict[str, object]:
        """Each namespace has its own, and no second one of a name."""
        if self.command == "POST":
            namespace = json.loads(body)["namespace"]
            if namespace in self.server.pipelines:
                return {"error": "already exists"}
            self.server.pipelines.add(namespace)
            return {"pipeline_id": "p"}
        asked = parse_qs(urlsplit(self.path).query).get("namespace", [""])[0]
        return {"pipelines": [{"pipeline_id": "p"}]} if asked in self.server.pipelines else {}

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def users():
    server = Users("right")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_request_says_who_asks_where_kubeflow_has_users(users: Users, tmp_path: Path, monkeypatch) -> None:
    url = f"http://127.0.0.1:{users.server_address[1]}"
    (tmp_path / "token").write_text("right\n")
    given = {"host": url, "namespace": "team", "header": "kubeflow-userid: me@example.org"}
    monkeypatch.delenv("RARECLASS_KUBEFLOW_TOKEN", raising=False)
    asked = submit.asked_by(config(), given, str(tmp_path / "token"))
    api = Kubeflow(asked.cluster.host, submit._access(asked))
    assert api.namespace == "team"
    assert users.seen
    for *_, headers, _ in users.seen:
        assert headers["authorization"] == "Bearer right"
        assert headers["kubeflow-userid"] == "me@example.org"
    assert api._client.get_user_namespace() == "team"

    (tmp_path / "token").write_text("renewed")
    users.token = "renewed"
    assert api._client.get_kfp_healthz().multi_user is True

    monkeypatch.setenv("RARECLASS_KUBEFLOW_TOKEN", "wrong")
    with pytest.raises(ConfigError, match=r"does not know who asks.*who are you.*Pass --token"):
        Kubeflow(url, submit._access(submit.asked_by(config(), given, None)))


@pytest.mark.parametrize("recurring", [None, "0 0 2 * * *"])
def test_a_submit_of_a_user_is_in_their_namespace_with_their_account(users: Users, tmp_path, monkeypatch, recurring):
    """From the upload to the run: each request says who asks, and what is made belongs to them."""
    url = f"http://127.0.0.1:{users.server_address[1]}"
    (tmp_path / "token").write_text("right\n")
    monkeypatch.delenv("RARECLASS_KUBEFLOW_TOKEN", raising=False)
    given = {"host": url, "namespace": "team", "account": "trainer", "header": "kubeflow-userid: me@example.org"}
    asked = submit.asked_by(config(cluster={"run_as_user": 10001}), given, str(tmp_path / "token"))
    done = submit.submit(asked, now=datetime(2026, 1, 5, tzinfo=UTC), recurring=recurring, wait=False)
    assert (done.id, done.new) == ("r" if recurring is None else "s", True)
    for *_, headers, _ in users.seen:
        assert (headers["authorization"], headers["kubeflow-userid"]) == ("Bearer right", "me@example.org")
    made = {path: body for command, path, _, _, body in users.seen if command == "POST"}
    started = json.loads(made["runs" if recurring is None else "recurringruns"])
    assert started["service_account"] == "trainer"
    assert json.loads(made["pipelines"])["namespace"] == "team"
    assert json.loads(made["experiments"])["namespace"] == "team"
    assert b"runAsUser" in made["pipelines/upload_version"]
    submit.submit(asked, now=datetime(2026, 1, 6, tzinfo=UTC), recurring=recurring, wait=False)
    assert [path for command, path, *_ in users.seen if command == "POST"].count("pipelines") == 1, "found again"


def test_a_token_comes_from_standard_input_and_is_in_no_parameter(monkeypatch) -> None:
    monkeypatch.setenv("RARECLASS_KUBEFLOW_TOKEN", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("from-input\n"))
    asked = submit.asked_by(config(), {"header": "cookie: session"}, "-")
    assert submit._access(asked).token == "from-input"
    assert "session" not in json.dumps(submit.shown(asked))
    assert "from-input" not in repr(submit._access(asked))
    for wrong in ("no-such-file", "a-token-by-mistake"):
        with pytest.raises(ConfigError, match="--token is not a file") as error:
            submit.asked_by(config(), {}, wrong)
        assert wrong not in str(error.value)
    for header in ("kubeflow-userid", ": x", "a: b\nc: d"):
        with pytest.raises(ConfigError, match="is no header"):
            Kubeflow("http://127.0.0.1:1", Access(header=header))


def test_steps_get_a_user_only_where_one_is_asked_for() -> None:
    plain = cluster.placed(cluster.compiled(), Placement("i", "1", "1Gi"))
    placed = cluster.placed(cluster.compiled(), Placement("i", "1", "1Gi", user=10001))
    assert "securityContext" not in plain
    platform = list(yaml.safe_load_all(placed))[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    wanted = {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
    assert [each["securityContext"] for each in platform.values()] == [wanted] * len(platform)


def test_a_secret_that_is_named_twice_gives_all_its_variables_and_two_for_one_are_refused() -> None:
    """The chart names one Secret for the database's password and for MLflow's token."""
    named = [{"name": "s", "env": {"PGPASSWORD": "password"}}, {"name": "s", "env": {"MLFLOW_TRACKING_TOKEN": "token"}}]
    made = submit.job(config(cluster={"secrets": named}), key="k", cache=False).placement.secrets
    assert made == {"s": {"PGPASSWORD": "password", "MLFLOW_TRACKING_TOKEN": "token"}}
    two = [*named, {"name": "t", "env": {"PGPASSWORD": "password"}}]
    with pytest.raises(ConfigError, match="PGPASSWORD from s/password and from t/password"):
        submit.job(config(cluster={"secrets": two}), key="k", cache=False)
