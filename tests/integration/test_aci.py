"""The target `aci` against Azure Resource Manager as documented, over https, with the unchanged SDKs: no account."""

from __future__ import annotations

import time

import pytest

from deploy import modelfiles
from deploy.aci import AciTarget
from deploy.image.registry import Registry
from deploy.target import DeploymentSpec
from schemas.errors import Reject, Retry
from schemas.settings import Settings
from tests import azure as fake
from tests.chaos import arm_faults
from tests.places import fake_place, write_model
from workers import doctor_target
from workers.targets import credential

REGISTRY = Registry(repository="127.0.0.1:1/driftloop/models")


@pytest.fixture
def azure(tmp_path, monkeypatch):
    with fake.azure(tmp_path / "azure") as azure:
        for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
            monkeypatch.setenv(name, azure.environment[name])
        yield azure


@pytest.fixture
def spec(tmp_path):
    folder = write_model(tmp_path / "model", 1)
    return DeploymentSpec("activity", "7", modelfiles.digest(folder), folder, run_id="run", cause="drift-1")


def target(azure, **changes):
    return AciTarget(fake_place(azure, **changes), credential(), arm_faults.Images(), REGISTRY)


def test_a_group_is_what_the_documentation_describes(azure, spec):
    """Azure refuses an unknown or missing field only when it is too late: at the first deployment."""
    deployment = target(azure).create(spec)
    (group,) = azure.arm.groups.values()
    assert azure.arm.refused == []
    properties = group.body["properties"]
    (container,) = properties["containers"]
    assert container["properties"]["livenessProbe"]["httpGet"]["path"] == "/ping"
    assert container["properties"]["image"] == arm_faults.IMAGE
    assert [login["identity"] for login in properties["imageRegistryCredentials"]] == list(
        group.body["identity"]["userAssignedIdentities"]
    )
    assert group.body["tags"]["managed-by"] == "driftloop"
    assert (group.body["tags"]["version"], group.body["tags"]["event-id"]) == ("7", "drift-1")
    assert deployment.endpoint == "http://127.0.0.1:8080"
    assert deployment.image == arm_faults.IMAGE


def test_no_secret_is_in_what_is_sent(azure, spec):
    """Bodies are kept by Azure and shown to whoever may read the resource group."""
    target(azure).create(spec)
    sent = str([group.body for group in azure.arm.groups.values()])
    assert "canary" not in sent


def test_the_fake_refuses_what_the_api_does_not_know():
    """A fake that takes everything would prove nothing."""
    good = {"location": "x", "properties": {"osType": "Linux", "containers": []}}
    assert fake.wrong_with(good) == []
    assert fake.wrong_with({"location": "x", "properties": {"osType": "Linux"}}) == [".properties.containers: required"]
    wrong = {**good, "id": "mine", "properties": {**good["properties"], "restartPolicies": "Always"}}
    assert sorted(fake.wrong_with(wrong)) == [".id: read-only", ".properties.restartPolicies: unknown"]
    ports = {**good, "properties": {**good["properties"], "ipAddress": {"type": "Public", "ports": [{"port": "80"}]}}}
    assert fake.wrong_with(ports) == [".properties.ipAddress.ports[0].port: int is needed"]
    misspelt = {
        **good,
        "properties": {**good["properties"], "osType": "Linuxx", "ipAddress": {"type": "Publik", "ports": []}},
    }
    assert [each.split(" ")[0] for each in fake.wrong_with(misspelt)] == [
        ".properties.ipAddress.type:",
        ".properties.osType:",
    ]


def test_an_unchanged_group_is_never_sent_again(azure, spec):
    """Any update restarts the containers that are answering requests."""
    first = target(azure).create(spec)
    assert target(azure).create(spec) == first
    assert len(azure.arm.puts) == 1


def test_nothing_is_asked_before_azure_wants_to_be_asked_again(azure, spec):
    """What comes earlier is refused, and counted against us."""
    azure.arm.retry_after = 3
    azure.arm.faults = ["429"] * 20
    at = target(azure)
    with pytest.raises(Retry, match="Azure"):
        at.create(spec)
    with pytest.raises(Retry, match="again in"):
        at.list("activity")
    azure.arm.faults = []
    time.sleep(3)
    at.create(spec)
    assert azure.arm.early == 0


def test_a_group_that_azure_could_not_provision_is_made_again(azure, spec):
    azure.arm.faults = ["", "failed"]
    at = target(azure)
    with pytest.raises((Retry, Reject), match="activity-v7"):
        at.create(spec)
    assert at.find("activity", "7") is None
    assert len(at.list("activity")) == 1, "it still has to be taken away"
    at.create(spec)
    assert [group.state for group in azure.arm.groups.values()] == ["Succeeded"]


def test_a_group_of_somebody_else_is_neither_listed_nor_touched(azure, spec):
    """A resource group may have other inhabitants, another loop's models among them."""
    target(azure).create(spec)
    other = AciTarget(fake_place(azure, scope="another"), credential(), arm_faults.Images(), REGISTRY)
    assert other.list("activity") == ()
    with pytest.raises(Retry, match="not ours"):
        other.create(spec)
    assert len(azure.arm.puts) == 1


def test_a_login_that_azure_does_not_know_is_said(azure, spec, monkeypatch):
    monkeypatch.setenv("IDENTITY_HEADER", "wrong")
    with pytest.raises(Retry, match="Azure"):
        target(azure).create(spec)


def test_random_faults_leave_one_group_and_no_early_request():
    """Ten of the two hundred scripts that `python -m tests.chaos.arm_faults` runs."""
    figures = arm_faults.measure(10, seed=1).figures
    assert figures["one_group_each"] == figures["scripts"] == 10
    assert figures["most_groups_at_once"] <= 2
    assert (figures["early_retries"], figures["refused_bodies"], figures["orphans"]) == (0, 0, 0)


def test_an_operation_that_was_given_up_still_tells_when_azure_wants_to_be_asked_again():
    """Its poller goes on in a thread, and is the one that is throttled (script 182: `failed 429` past the limit)."""
    assert arm_faults.measure(1, seed=0, first=182).figures["early_retries"] == 0


# -- the doctor -----------------------------------------------------------------------------------------------------


def settings(azure, tmp_path, **changes):
    return Settings(
        _env_file=None,
        **{
            "home": tmp_path / "home",
            "target": "aci",
            "aci_subscription": fake.SUBSCRIPTION,
            "aci_resource_group": fake.GROUP,
            "aci_identity": azure.environment["DRIFTLOOP_ACI_IDENTITY"],
            "azure_endpoint": azure.endpoint,
            "azure_ca": azure.ca,
            "image_repository": "127.0.0.1:1/driftloop/models",
            "image_builder": "registry",
            "runtime_image": "127.0.0.1:1/driftloop/models:runtime",
            "registry_auth": "azure",
            **changes,
        },
    )


def found(azure, tmp_path, **changes):
    return {each.what: each for each in doctor_target.examine(settings(azure, tmp_path, **changes))}


def test_the_doctor_looks_at_everything_that_a_deployment_will_need(azure, tmp_path):
    """Each check names its remedy before the first deployment fails on it at night."""
    told = found(azure, tmp_path)
    good = {what: each.good for what, each in told.items()}
    assert good == {
        "trust": True,
        "Azure login": True,
        "resource group": True,
        "region": True,
        "pull identity": True,
        "registry": False,
    }
    assert "AcrPush" in told["registry"].detail


@pytest.mark.parametrize(
    ("changes", "what", "mend"),
    [
        ({"aci_resource_group": None}, "settings", "DRIFTLOOP_ACI_RESOURCE_GROUP"),
        ({"runtime_image": "elsewhere/image:1"}, "settings", "runtime-image"),
        ({"aci_resource_group": "none"}, "resource group", "az group create"),
        ({"aci_identity": None}, "pull identity", "AcrPull"),
        ({"aci_identity": "/subscriptions/other"}, "pull identity", "az identity create"),
        ({"azure_endpoint": "https://127.0.0.1:1"}, "resource group", "does not answer"),
    ],
    ids=str,
)
def test_the_doctor_says_how_to_mend_what_is_missing(azure, tmp_path, changes, what, mend):
    each = found(azure, tmp_path, **changes)[what]
    assert not each.good
    assert mend in each.detail


@pytest.mark.parametrize(
    ("kept", "what", "role"),
    [
        (["Microsoft.ManagedIdentity/*"], "resource group", "Container Instances Contributor"),
        (["Microsoft.ContainerInstance/containerGroups/*"], "pull identity", "Managed Identity Operator"),
    ],
)
def test_the_doctor_says_which_role_is_missing_although_everything_can_be_read(azure, tmp_path, kept, what, role):
    """Reader passes every look; the first deployment would not."""
    azure.arm.permissions = [{"actions": kept, "notActions": []}]
    each = found(azure, tmp_path)[what]
    assert not each.good
    assert role in each.detail
    azure.arm.permissions = [{"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]}]  # Contributor
    assert found(azure, tmp_path)[what].good


def test_the_doctor_says_when_nobody_vouches_for_us(azure, tmp_path, monkeypatch):
    monkeypatch.setenv("IDENTITY_HEADER", "wrong")
    each = found(azure, tmp_path)["Azure login"]
    assert not each.good
    assert "az login" in each.detail
