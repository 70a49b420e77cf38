"""The chart under every pair of its switches: what it renders is whole, and a cluster accepts it where there is one."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from chart_rules import pod_specs, problems
from kube import CHART, helm, kubectl, lacking

BASE = {
    "config": {"name": "m", "data": {"path": "s3://b/x", "target": "y"}},
    "networkPolicy": {
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 443}]}],
        "apiServer": {"cidrs": ["10.0.0.1/32"]},
        "proxies": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
    },
    "alerts": {"page": {"webhookConfigs": [{"url": "http://pager.example/alerts"}]}},
}
TOKENS = {"monitor.labelsTokenSecret": "outside-token", "monitor.statusTokenSecret": "outside-token"}
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "serving": {
        "seldon": {"serving.backend": "seldon"},
        "deployment": {"serving.backend": "deployment"},
        "statefulset": {"serving.backend": "deployment", "serving.spool.persistent": True},
        "kserve": {"serving.backend": "kserve"},
        "logged": {
            "serving.backend": "kserve",
            "serving.kserve.logger": {"mode": "all", "url": "http://sink.example/events"},
        },
        "found": {},
        "off": {"serving.enabled": False},
    },
    "runtime": {"on": {"serving.kserve.runtime.enabled": True}, "off": {}},
    "autoscaling": {"on": {"serving.autoscaling.enabled": True}, "off": {}},
    "budget": {"on": {}, "off": {"serving.podDisruptionBudget.enabled": False}},
    "token": {"on": {"serving.tokenSecret": "outside-token"}, "off": {}},
    "monitor": {
        "open": {},
        "tokens": {**TOKENS},
        "ingress": {
            **TOKENS,
            "ingress.enabled": True,
            "ingress.host": "m.example.org",
            "ingress.tlsSecret": "outside-certificate",
            "ingress.className": "c",
        },
        "gateway": {
            **TOKENS,
            "gateway.enabled": True,
            "gateway.hostnames": ["m.example.org"],
            "gateway.parentRefs": [{"name": "g", "sectionName": "https"}],
        },
        "off": {"monitor.enabled": False},
    },
    "listen": {
        "off": {},
        "on": {
            "listen.enabled": True,
            "listen.tokenSecret": "outside-token",
            "listen.kafkaSecret": "outside-password",
            "listen.clients": [{"namespaceSelector": {"matchLabels": {"team": "scoring"}}}],
        },
        "on the node": {"listen.enabled": True, "listen.spool.persistent": False},
    },
    "store": {
        "embedded": {"postgresql.existingSecret.name": "outside-database"},
        "password": {"postgresql.password": "secret"},
        "url": {"store.url": "postgresql://u@outside/d", "postgresql.existingSecret.name": "outside-database"},
        "secret": {"store.existingSecret.name": "outside-store", "postgresql.existingSecret.name": "outside-database"},
    },
    "mlflow": {
        "volume": {},
        "bucket": {"mlflow.artifacts": "s3://b/a", "mlflow.createBucket": True},
        "outside": {
            "tracking.uri": "https://mlflow.example.org",
            "tracking.existingSecret.name": "outside-mlflow",
            "mlflow.enabled": False,
        },
    },
    "gate": {"token": {"mlflow.tokenSecret": "outside-gate"}, "open": {}},
    "s3": {
        "outside": {"s3.endpoint": "http://minio.minio:9000", "s3.existingSecret.name": "outside-s3"},
        "identity": {},
    },
    "images": {
        "digests": {
            "image.digests.pipeline": "sha256:" + "a" * 64,
            "image.digests.serving": "sha256:" + "b" * 64,
            "image.pullSecrets": [{"name": "outside-registry"}],
        },
        "tag": {"image.tag": "1.2"},
    },
    "pods": {
        "placed": {
            "pods.labels": {"team": "a"},
            "pods.nodeSelector": {"disk": "fast"},
            "pods.tolerations": [{"key": "gpu", "operator": "Exists"}],
            "pods.affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}
                    ]
                }
            },
            "pods.topologySpread": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "pods.priorityClassName": "high",
            "serviceAccounts.annotations": {"role": "a"},
            "serviceAccounts.each": {"mlflow": {"labels": {"use": "true"}}},
        },
        "anywhere": {},
    },
    "authorities": {"own": {"caBundle.configMap": "outside-bundle"}, "public": {}},
    "migrate": {"on": {}, "off": {"migrate.enabled": False}},
    "train": {"on": {"train.enabled": True}, "off": {}},
    "labels": {"on": {"jobs.labels.enabled": True, "jobs.labels.source": "s3://b/l.csv"}, "off": {}},
    "evidently": {"on": {"jobs.evidently.enabled": True}, "off": {}},
    "retention": {"on": {}, "off": {"jobs.retention.enabled": False}},
    "backup": {
        "volume": {"jobs.backup.enabled": True},
        "bucket": {"jobs.backup.enabled": True, "jobs.backup.destination": "s3://b/k"},
        "off": {},
    },
    "network": {"on": {}, "off": {"networkPolicy.enabled": False, "mlflow.tokenSecret": "outside-gate"}},
    "monitors": {
        "on": {"serviceMonitor.interval": "10s", "serviceMonitor.labels": {"team": "a"}},
        "off": {"serviceMonitor.enabled": False},
    },
    "alerts": {
        "on": {"alerts.labels": {"team": "a"}},
        "unrouted": {"alerts.routing": False},
        "off": {"alerts.enabled": False},
    },
    "argo": {
        "authority": {"alerts.argo.caSecret.name": "outside-authority", "alerts.argo.serverName": "localhost"},
        "unverified": {"alerts.argo.verify": False},
        "token": {"alerts.argo.tokenSecret": "outside-token"},
    },
    "promotion": {"manual": {"config.promotion.mode": "manual"}, "immediate": {}},
    "dashboards": {"on": {"dashboards.annotations": {"folder": "models"}}, "off": {"dashboards.enabled": False}},
    "retrain": {
        "off": {},
        "kubeflow": {"retrain.enabled": True, "retrain.kubeflow.existingSecret": "outside-pipeline"},
        "beside": {
            "retrain.enabled": True,
            "retrain.kubeflow.namespace": "SPACE",
            "retrain.kubeflow.multiUser": True,
            "retrain.kubeflow.runAsUser": 10001,
        },
        "pod": {"retrain.enabled": True, "retrain.runner": "pod", "retrain.suspend": True},
    },
}
"""The switches of values.yaml that make or leave out objects: name -> setting -> values."""

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="there is no helm on the PATH")


def pairwise(switches: dict[str, dict[str, Any]], seed: int = 1) -> list[dict[str, str]]:
    """Combinations in which any two settings of any two switches meet at least once."""
    chance = random.Random(seed)
    left = {
        pair
        for a, b in itertools.combinations(switches, 2)
        for pair in itertools.product(((a, each) for each in switches[a]), ((b, each) for each in switches[b]))
    }
    made = []
    while left:
        best: dict[str, str] = {}
        most = -1
        for _ in range(20):
            one: dict[str, str] = dict(chance.choice(sorted(left)))
            for name in chance.sample(sorted(switches), len(switches)):
                if name not in one:
                    one[name] = max(
                        chance.sample(sorted(switches[name]), len(switches[name])),
                        key=lambda each, name=name, one=one: sum(
                            pair in left for pair in _pairs(one, name, each, switches)
                        ),
                    )
            new = sum(pair in left for pair in _all_pairs(one, switches))
            if new > most:
                best, most = one, new
        left -= set(_all_pairs(best, switches))
        made.append(best)
    return made


def _pairs(one: dict[str, str], name: str, value: str, switches: dict[str, Any]) -> Iterator[Any]:
    order = list(switches)
    for other, held in one.items():
        pair = [(name, value), (other, held)]
        yield tuple(sorted(pair, key=lambda each: order.index(each[0])))


def _all_pairs(one: dict[str, str], switches: dict[str, Any]) -> Iterator[Any]:
    return itertools.combinations([(name, one[name]) for name in switches], 2)


def values_of(combination: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(BASE))
    for name, setting in combination.items():
        for path, value in SWITCHES[name][setting].items():
            *folders, last = path.split(".")
            inner = made
            for folder in folders:
                inner = inner.setdefault(folder, {})
            inner[last] = value
    return made


COMBINATIONS = pairwise(SWITCHES)


def rendered(combination: dict[str, str], tmp_path: Any, space: str = "space") -> list[dict[str, Any]]:
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(values_of(combination)).replace("SPACE", space))
    done = helm("template", "release", str(CHART), "-n", space, "--kube-version", "1.34.0", "-f", str(values))
    assert done.returncode == 0, (combination, done.stderr)
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def outside(value: Any) -> set[str]:
    """Every name in the values of something that is said to be there already."""
    if isinstance(value, dict):
        return set().union(*(outside(each) for each in value.values()))
    if isinstance(value, list):
        return set().union(*(outside(each) for each in value))
    return {value} if isinstance(value, str) and value.startswith("outside-") else set()


def test_the_combinations_hold_every_pair_of_settings() -> None:
    seen = {pair for one in COMBINATIONS for pair in _all_pairs(one, SWITCHES)}
    for a, b in itertools.combinations(SWITCHES, 2):
        for one, other in itertools.product(SWITCHES[a], SWITCHES[b]):
            assert ((a, one), (b, other)) in seen


@needs_helm
@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_what_any_two_switches_render_is_whole(number: int, tmp_path: Any) -> None:
    combination = COMBINATIONS[number]
    found = problems(rendered(combination, tmp_path), "space", outside(values_of(combination)))
    assert not found, (combination, found)


@needs_helm
def test_a_second_render_is_the_first_one(tmp_path: Any) -> None:
    """Whoever renders again, like a GitOps tool, changes nothing: no password is made up in a template."""
    for combination in COMBINATIONS[:4]:
        assert rendered(combination, tmp_path) == rendered(combination, tmp_path)


@needs_helm
def test_a_reference_to_nothing_a_wrong_field_and_a_selector_without_pods_are_found(tmp_path: Any) -> None:
    """The rules themselves can fail: each kind of damage to a good set of objects is named."""
    good = rendered(dict.fromkeys(SWITCHES, "") | {name: next(iter(each)) for name, each in SWITCHES.items()}, tmp_path)
    given = outside(values_of({name: next(iter(each)) for name, each in SWITCHES.items()}))
    assert not problems(good, "space", given)

    def damaged(kind: str, change: Any) -> str:
        objects = json.loads(json.dumps(good))
        change(next(each for each in objects if each["kind"] == kind))
        return " ".join(problems(objects, "space", given))

    assert "replica is no field" in damaged("Deployment", lambda each: each["spec"].update(replica=3))
    assert "is '3', not int" in damaged("Deployment", lambda each: each["spec"].update(replicas="3"))
    assert "selector is missing" in damaged("Deployment", lambda each: each["spec"].pop("selector"))
    assert "selects no pod" in damaged("Service", lambda each: each["spec"].update(selector={"app": "x"}))
    pod = lambda each: each["spec"]["template"]["spec"]  # noqa: E731
    assert "ServiceAccount nobody" in damaged("Deployment", lambda each: pod(each).update(serviceAccountName="nobody"))
    assert "no volumes" in damaged("Deployment", lambda each: pod(each)["volumes"].clear())
    assert "Secret release-events-token, which nobody makes" in " ".join(
        problems([each for each in good if each["kind"] != "Secret"], "space", given)
        + damaged(
            "AlertmanagerConfig",
            lambda each: each["spec"]["receivers"].append({"credentials": {"name": "release-events-token"}}),
        ).splitlines()
    )


@needs_helm
def test_alerts_reach_a_person_where_no_workflow_can_repair(tmp_path: Any) -> None:
    """The defaults: routing on, retraining off.

    A receiver with a Secret that nobody makes takes the whole routing away.
    """
    chosen = {name: next(iter(each)) for name, each in SWITCHES.items()} | {"retrain": "off", "argo": "unverified"}
    route = next(each for each in rendered(chosen, tmp_path) if each["kind"] == "AlertmanagerConfig")["spec"]
    assert [each["name"] for each in route["receivers"]] == ["page"]
    assert route["route"]["receiver"] == "page"
    assert "routes" not in route["route"]
    with_loop = next(
        each for each in rendered(chosen | {"retrain": "pod"}, tmp_path) if each["kind"] == "AlertmanagerConfig"
    )
    assert [each["name"] for each in with_loop["spec"]["receivers"]] == ["page", "triage"]


@needs_helm
def test_broken_data_holds_back_triage_in_the_cluster_as_its_runbook_says(tmp_path: Any) -> None:
    chosen = {name: next(iter(each)) for name, each in SWITCHES.items()}
    route = next(each for each in rendered(chosen, tmp_path) if each["kind"] == "AlertmanagerConfig")["spec"]
    held = [
        each
        for each in route["inhibitRules"]
        if "RareclassDataBroken" in each["sourceMatch"][0]["value"]
        and each["targetMatch"] == [{"name": "action", "matchType": "=", "value": "triage"}]
    ]
    assert len(held) == 1
    assert held[0]["equal"] == ["namespace", "model"]


@needs_helm
def test_argos_own_certificate_is_checked_against_its_authority(tmp_path: Any) -> None:
    chosen = {name: next(iter(each)) for name, each in SWITCHES.items()} | {"retrain": "pod", "argo": "authority"}
    route = next(each for each in rendered(chosen, tmp_path) if each["kind"] == "AlertmanagerConfig")["spec"]
    triage = next(each for each in route["receivers"] if each["name"] == "triage")
    assert triage["webhookConfigs"][0]["httpConfig"]["tlsConfig"] == {
        "ca": {"secret": {"name": "outside-authority", "key": "ca.crt"}},
        "serverName": "localhost",
    }


@needs_helm
def test_the_placement_authorities_and_labels_of_the_values_reach_every_pod(tmp_path: Any) -> None:
    chosen = {name: next(iter(each)) for name, each in SWITCHES.items()} | {
        "pods": "placed",
        "authorities": "own",
        "images": "digests",
    }
    objects = rendered(chosen | {"retrain": "pod"}, tmp_path)
    seen = 0
    for where, labels, spec in pod_specs(objects):
        seen += 1
        assert labels["team"] == "a", where
        assert spec["nodeSelector"] == {"disk": "fast"}, where
        assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}], where
        assert "nodeAffinity" in spec["affinity"], where
        if not where.startswith("ServingRuntime"):
            assert spec["priorityClassName"] == "high", where
            [spread] = spec["topologySpreadConstraints"]
            assert spread["labelSelector"]["matchLabels"].items() <= labels.items(), where
        for container in spec["containers"]:
            if "postgresql" not in where and "test" not in where:
                assert "SSL_CERT_FILE" in [each["name"] for each in container["env"]], where
                assert "/etc/rareclass/ca" in [each["mountPath"] for each in container["volumeMounts"]], where
            assert "@sha256:" in container["image"] or "postgres" in container["image"], where
    assert seen >= 8
    turn = next(each for each in objects if each["kind"] == "WorkflowTemplate")["spec"]
    assert (turn["nodeSelector"], turn["podPriorityClassName"]) == ({"disk": "fast"}, "high")
    accounts = {each["metadata"]["name"]: each["metadata"] for each in objects if each["kind"] == "ServiceAccount"}
    assert {name: each.get("annotations") for name, each in accounts.items()} == {
        name: {"role": "a"} for name in accounts
    }
    assert [name for name, each in accounts.items() if "use" in each["labels"]] == ["release-mlflow"]


@needs_helm
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"image": {"digests": {"pipeline": "sha256:" + "a" * 64, "serving": "sha256:" + "a" * 64}}},
            "are the same: they are two images",
        ),
        ({"image": {"digests": {"pipeline": "latest"}}}, "image.digests.pipeline is no digest"),
        ({"ingress": {"enabled": True}}, "set monitor.statusTokenSecret and monitor.labelsTokenSecret"),
        (
            {"ingress": {"enabled": True}, "monitor": {"labelsTokenSecret": "a", "statusTokenSecret": "b"}},
            "needs ingress.host and ingress.tlsSecret",
        ),
        (
            {
                "gateway": {"enabled": True, "hostnames": ["h"], "parentRefs": [{"name": "g"}]},
                "monitor": {"labelsTokenSecret": "a", "statusTokenSecret": "b"},
            },
            "needs sectionName",
        ),
        ({"serviceAccounts": {"each": {"server": {}}}}, "The accounts are: serving"),
    ],
)
def test_what_would_be_open_or_mixed_up_is_refused(settings: dict[str, Any], said: str, tmp_path: Any) -> None:
    file = tmp_path / "values.json"
    file.write_text(json.dumps({**BASE, "postgresql": {"password": "p"}, **settings}))
    done = helm("template", "release", str(CHART), "--kube-version", "1.34.0", "-f", str(file))
    assert done.returncode != 0
    assert said in done.stderr


# --- on a cluster ----------------------------------------------------------------------------------------------------

PLATFORM = {
    "machinelearning.seldon.io/v1": "seldondeployments.machinelearning.seldon.io",
    "monitoring.coreos.com/v1": "prometheusrules.monitoring.coreos.com",
    "monitoring.coreos.com/v1alpha1": "alertmanagerconfigs.monitoring.coreos.com",
    "argoproj.io/v1alpha1": "workflowtemplates.argoproj.io",
    "serving.kserve.io/v1beta1": "inferenceservices.serving.kserve.io",
    "serving.kserve.io/v1alpha1": "servingruntimes.serving.kserve.io",
    "gateway.networking.k8s.io/v1": "httproutes.gateway.networking.k8s.io",
}


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    if why := lacking():
        pytest.skip(why)
    name = f"dry-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def accepted(objects: list[dict[str, Any]], space: str) -> None:
    """Server-side apply, dry: API server, admission webhooks and Pod Security have seen every object."""
    known = kubectl("get", "crd", "-o", "name")
    missing = {each for each, name in PLATFORM.items() if name not in known}
    given = [
        each
        for each in objects
        if each["apiVersion"] not in missing and "helm.sh/hook" not in str(each["metadata"].get("annotations"))
    ]
    for each in given:
        each["metadata"].setdefault("namespace", space)
    apply = ("kubectl", "apply", "--server-side", "--dry-run=server", "-f", "-")
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": given})
    said = subprocess.run(apply, input=text, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "would violate PodSecurity" not in said.stderr
    assert said.stdout.count("(server dry run)") == len(given)


@pytest.mark.cluster
@pytest.mark.parametrize("number", range(len(COMBINATIONS)))
def test_the_cluster_accepts_what_any_two_switches_render(number: int, space: str, tmp_path: Any) -> None:
    accepted(rendered(COMBINATIONS[number], tmp_path, space), space)


@pytest.mark.cluster
def test_the_gateway_api_accepts_the_route_and_would_not_accept_any(space: str, tmp_path: Any) -> None:
    if "httproutes.gateway.networking.k8s.io" not in kubectl("get", "crd", "-o", "name"):
        pytest.skip("the cluster has no Gateway API: manifests/gateway-api")
    combination = next(each for each in COMBINATIONS if each["monitor"] == "gateway")
    routes = [each for each in rendered(combination, tmp_path, space) if each["kind"] == "HTTPRoute"]
    assert len(routes) == 1
    accepted(routes, space)
    routes[0]["spec"]["rules"][0]["matches"][0]["path"]["type"] = "Exactly"
    with pytest.raises(AssertionError, match="Unsupported value"):
        accepted(routes, space)
