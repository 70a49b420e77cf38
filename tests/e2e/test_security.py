"""No secret in an image, in a pod's log or in what Kubeflow and Argo show of a run."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import urllib.parse
import urllib.request
from typing import Any

import pytest
import yaml
from kube import CHART, OBJECT_STORE_KEY, RELEASE, SPACE, address, got, inside, kubectl, lacking

missing = lacking("kubeflow", "monitoring", SPACE)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(900),
]
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
SPACES = [each for each in (SPACE, "loop") if not lacking(each)]

# Reads every file of the image as its own user does; prints what looks like a secret.
SCAN = """
    import os, re
    looks = re.compile(rb"-----BEGIN (?:RSA |EC |OPENSSH |DSA )?PRIVATE KEY-----\\\\s+[A-Za-z0-9+/=]{{60}}|\\\\bAKIA[0-9A-Z]{{16}}\\\\b|\\\\bghp_[A-Za-z0-9]{{36}}\\\\b|://[^/\\\\s:@\\"'{{}}<>$%]+:[^/\\\\s:@\\"'{{}}<>$%]+@[a-z0-9.-]+\\\\.[a-z]{{2,}}")
    names = {{".netrc", "pip.conf", ".git-credentials", ".pypirc", "credentials", "id_rsa", ".dockerconfigjson", ".npmrc", ".env", "kubeconfig"}}
    seen = 0
    for folder, below, files in os.walk("/"):
        below[:] = [each for each in below if os.path.join(folder, each) not in ("/proc", "/sys", "/dev", "/tmp", "/run", "/var/run")]
        for name in files:
            path = os.path.join(folder, name)
            if name in names and os.path.getsize(path):  # a builder may leave an empty place where it mounted one
                print("NAME", path)
            try:
                if os.path.islink(path) or os.path.getsize(path) > 5_000_000:
                    continue
                with open(path, "rb") as file:
                    text = file.read()
            except OSError:
                continue
            seen += 1
            for found in looks.findall(text):
                print("TEXT", path, found[:80])
    secrets = [name for name in os.environ if re.search("PASSWORD|SECRET|TOKEN|CREDENTIAL", name)]
    print("ENV", *secrets) if secrets else None
    print("files", seen)
"""  # noqa: E501
DOCUMENTED = re.compile(r"user|username|name|login|me|scott|u|foo|bob|myuser|postgres|root|admin|test|alice|guest")
"""Users of the addresses that packages show in their documentation; nobody's."""


@pytest.mark.parametrize("image", ["pipeline", "serving"])
def test_no_secret_is_in_an_image(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE", f"rareclass/{image}:{VERSION}")
    lines = inside(SCAN.format(), seconds=500).splitlines()
    assert int(lines[-1].removeprefix("files ")) > 1000
    assert [each for each in lines[:-1] if not documented(each)] == []


def documented(line: str) -> bool:
    found = re.search(r"://([^:]+):", line)
    return line.startswith("TEXT") and found is not None and DOCUMENTED.fullmatch(found[1].lower()) is not None


@pytest.mark.parametrize("image", ["pipeline", "serving"])
def test_no_secret_is_in_the_history_of_an_image(image: str) -> None:
    listed = subprocess.run(["ctr", "images", "ls"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("containerd's client reaches no containerd here")
    digest = next(
        line.split()[2]
        for line in listed.stdout.splitlines()
        if line.startswith(f"docker.io/rareclass/{image}:{VERSION} ")
    )
    manifest = json.loads(content(digest))
    config = json.loads(content(manifest["config"]["digest"]))
    assert config["config"]["User"] == "10001:10001"
    assert len(config["history"]) > 5
    text = json.dumps([config["history"], config["config"]])
    assert not re.search(r"://[^/\s:@]+:[^/\s:@]+@|(?i:password|secret|token|index[-_]url)", text)


def content(digest: str) -> str:
    return subprocess.run(["ctr", "content", "get", digest], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def secrets() -> set[str]:
    """Passwords and tokens of the releases, as they stand in their Secrets and inside of addresses."""
    found = set()
    for space in SPACES:
        for each in got("-n", space, "secrets")["items"]:
            if each["type"] == "helm.sh/release.v1":
                continue
            for key, value in each.get("data", {}).items():
                text = base64.b64decode(value).decode(errors="replace")
                if key in ("ca.crt", "namespace") or text == OBJECT_STORE_KEY:
                    continue  # the trial's object store: a user of that name whose password is public
                address = re.search(r"://[^:/]+:([^@]+)@", text)
                found.add(address[1] if address else text)
    assert any(len(each) == 32 for each in found), "the generated password of PostgreSQL"
    return found


@pytest.mark.parametrize("space", [*SPACES, "kubeflow", "argo", "monitoring"])
def test_no_secret_is_in_a_log(secrets: set[str], space: str) -> None:
    seen = 0
    for pod in got("-n", space, "pods")["items"]:
        name = pod["metadata"]["name"]
        again = any(each["restartCount"] for each in pod["status"].get("containerStatuses", []))
        for previous in ("false", "true") if again else ("false",):
            said = kubectl("-n", space, "logs", name, "--all-containers", f"--previous={previous}", check=False)
            seen += len(said)
            assert not [each[:4] + "..." for each in secrets if each in said], name
    assert seen > 1000


def test_no_secret_is_in_what_kubeflow_and_argo_show_of_a_run(secrets: set[str]) -> None:
    query = urllib.parse.urlencode({"page_size": 100})
    with urllib.request.urlopen(
        f"{address('kubeflow', 'ml-pipeline', 8888)}/apis/v2beta1/runs?{query}", timeout=60
    ) as answer:
        runs: Any = json.load(answer)["runs"]
    assert runs
    shown = json.dumps(runs) + kubectl(
        "get", "workflows,workflowtemplates,cronworkflows,pods,configmaps,deployments", "-A", "-o", "json"
    )
    assert not [each[:4] + "..." for each in secrets if each in shown]
    assert RELEASE in shown
