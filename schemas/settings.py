"""Every setting, its default and its meaning: environment variables `DRIFTLOOP_*`, or the same in `.env`.

A running one-machine stack leaves its addresses in `<home>/stack.env`, so that every command finds it; what a person
sets, in the environment or in `.env`, comes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.errors import UserError
from schemas.topology import Topic

STACK_ENV = "stack.env"
_THEIR_NAMES = {"mlflow_tracking_uri": "MLFLOW_TRACKING_URI", "aci_subscription": "AZURE_SUBSCRIPTION_ID"}
SECRETS = Path("/run/secrets")
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]


class Settings(BaseSettings):
    """Settings in force. Seconds and bytes are in the names; secrets never print."""

    model_config = SettingsConfigDict(env_prefix="DRIFTLOOP_", extra="ignore", populate_by_name=True, frozen=True)

    home: Path = Field(Path(".driftloop"), description="folder of the one-machine stack: data, logs, addresses")
    model: ModelName = Field("activity", description="name of the model in the registry and the key of its events")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line written")

    kafka_bootstrap: str | None = Field(None, description="host:port,… of your own Kafka; unset: the embedded one")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how to talk to your own Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="used with SASL_*"
    )
    kafka_sasl_username: str | None = Field(None, description="used with SASL_*")
    kafka_sasl_password: SecretStr | None = Field(None, description="used with SASL_*")
    kafka_ssl_ca: Path | None = Field(
        None, description="PEM file of the authority that signed the broker's certificate"
    )
    namespace: Annotated[str, Field(pattern=r"^([a-z0-9-]+\.)?$")] = Field(
        "",
        description="put before every topic, group and transactional id, as in `team-a.`: several loops on one Kafka",
    )
    slot: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = Field(
        "1", description="which of several retrain or deploy workers this one is; no two may share a slot"
    )
    topic_replication: int = Field(1, ge=1, description="replication factor of topics that we create")
    mlflow_tracking_uri: str | None = Field(
        None,
        validation_alias=AliasChoices("mlflow_tracking_uri", "MLFLOW_TRACKING_URI", "DRIFTLOOP_MLFLOW_TRACKING_URI"),
        description="your own MLflow server; unset: the embedded one",
    )
    mlflow_public_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="MLflow's address for people who look at the page, where it is another one than for our processes",
    )

    detector: Literal["raw", "per-feature", "confirmed"] = Field(
        "confirmed",
        description="raw: ADWIN on each raw channel, as tutorials do; per-feature: on window statistics; "
        "confirmed: on their residuals per activity, confirmed over several stretches",
    )
    policy: Literal["quiet", "standard", "sensitive"] = Field(
        "standard", description="how much it takes for an alarm of `confirmed`"
    )
    activity_source: Literal["auto", "label", "model"] = Field(
        "auto",
        description="what a person does, for `confirmed`. auto: the label where readings carry one, else the model's "
        "profile; label: readings without one are not judged; model: labels are not looked at",
    )
    calibration_seconds: float = Field(
        640, ge=60, description="of readings before `confirmed` judges a device; less costs false alarms"
    )
    checkpoint_seconds: float = Field(0.5, gt=0, description="how often the agent makes its state durable and commits")
    checkpoint_readings: int = Field(100_000, ge=1, description="the same, by readings since the last checkpoint")
    idle_seconds: float = Field(
        900, gt=0, description="how long a device is silent before the agent keeps of it only what it has saved"
    )
    stall_seconds: float = Field(
        120,
        gt=0,
        description="the agent ends, to be started anew, when its readings wait and nothing moves for so long",
    )

    first_windows: int = Field(600, ge=50, description="labelled windows that the first model waits for")
    recent_windows: int = Field(280, ge=20, description="labelled windows since the change that a retraining waits for")
    recent_activities: int = Field(5, ge=1, le=6, description="different activities among them")
    collect_seconds: float = Field(600, ge=0, description="how long a retraining waits for them before it gives up")
    recent_per_activity: int = Field(5, ge=1, description="labelled windows from which an activity counts as there")
    retrain_policy: Literal["driftloop", "never", "periodic", "every-alarm"] = Field(
        "driftloop",
        description="never: drifts are only told; periodic: every retrain_period_seconds, whatever drifts; "
        "every-alarm: a training for each drift event, unasked whether it hurts",
    )
    retrain_period_seconds: float = Field(21_600, gt=0, description="used with periodic")
    cooldown_seconds: float = Field(300, ge=0, description="after a retraining, before the next may begin")
    look_seconds: float = Field(
        240, ge=0, description="after which a drift that did not hurt, or that no model healed, is looked at again"
    )
    daily_trainings: int = Field(12, ge=1, description="retrainings within 24 hours, at most")
    breaker_rejections: int = Field(3, ge=1, description="retrainings in a row without a better model that stop them")
    breaker_seconds: float = Field(21_600, ge=0, description="for so long; then one more is tried")
    train_seconds: float = Field(900, gt=0, description="deadline of one training; past it the job has failed")
    train_jobs: int = Field(1, ge=-1, description="candidates that are trained at a time; -1: as many as cores")
    train_backend: Literal["threading", "loky", "dask"] = Field(
        "threading",
        description="joblib's backend for them; dask (with the package distributed): a cluster",
    )
    train_scheduler: str | None = Field(None, description="tcp://host:8786 of the Dask scheduler, used with dask")
    promote_margin: float = Field(0.02, ge=0, le=1, description="recent macro F1 that a challenger must gain")
    anchor_loss: float = Field(0.01, ge=0, le=1, description="anchor macro F1 that it may lose")
    class_loss: float = Field(0.1, ge=0, le=1, description="anchor F1 that it may lose in any one activity")
    anchor_windows: int = Field(12_000, ge=100, description="windows from before a drift that are kept with a model")
    verdict_windows: int = Field(
        100, ge=20, description="labelled windows from which a new version is judged, as soon as they are sure"
    )
    verdict_seconds: float = Field(1800, ge=0, description="after a deployment, when it is judged by what there is")
    training_seed: int = Field(0, ge=0, description="added to the seed that each job derives from its event's id")

    target: Literal["process", "docker", "aci"] = Field("process", description="where models are deployed")
    router_host: str = Field("127.0.0.1", description="address that the stable endpoint listens on")
    router_port: int = Field(0, ge=0, le=65535, description="its port; 0: the stack chooses a free one and keeps it")
    ready_seconds: float = Field(60, gt=0, description="how long a new version may take to answer /ping")
    grace_seconds: float = Field(5, ge=0, description="how long the old version still serves after the switch")
    bake_seconds: float = Field(
        60, ge=0, description="how long a new version may be sent back; the old one waits so long"
    )
    slow_ms: float = Field(1000, gt=0, description="median answer above which a version under watch is sent back")
    signing_key: Path | None = Field(
        None, description="PEM file of the ed25519 key that models are signed with; unset: one is made in the home"
    )
    signing_secret: SecretStr | None = Field(
        None, description="the same key as text, as a secret store hands it over; comes before the file"
    )
    trusted_keys: Path | None = Field(
        None,
        description="folder of the public keys (*.pem) that models are accepted from; unset: keys/trusted in the home",
    )

    base_image: str | None = Field(
        None, description="image that the runtime image is built on; unset: python:X.Y-slim of this Python"
    )
    runtime_image: str | None = Field(
        None, description="image that each model is a layer on; unset: built from base_image by the Docker engine"
    )
    image_repository: Annotated[str | None, Field(pattern=r"^[a-z0-9.:-]+(/[a-z0-9._-]+)+$")] = Field(
        None, description="registry.example/name that images are pushed to; unset: they stay in the Docker engine"
    )
    image_builder: Literal["docker", "registry"] = Field(
        "docker", description="who adds a model's layer: the Docker engine, or the registry alone (needs runtime_image)"
    )
    registry_auth: Literal["none", "basic", "azure"] = Field(
        "none", description="how to log in to the registry; azure: with azure-identity, as ACR wants it"
    )
    registry_username: str | None = Field(None, description="used with basic")
    registry_password: SecretStr | None = Field(None, description="used with basic")
    registry_ca: Path | None = Field(
        None, description="PEM file of the authority that signed the registry's certificate"
    )
    serving_cpus: float = Field(1.0, gt=0, description="processors that a container of a model may use")
    serving_memory_mb: int = Field(512, ge=128, description="memory that a container of a model may use")

    aci_subscription: str | None = Field(
        None,
        validation_alias=AliasChoices("aci_subscription", "AZURE_SUBSCRIPTION_ID", "DRIFTLOOP_ACI_SUBSCRIPTION"),
        description="Azure subscription of the container groups",
    )
    aci_resource_group: str | None = Field(None, description="resource group that the container groups are made in")
    aci_location: str = Field("westeurope", description="Azure region of the container groups")
    aci_identity: str | None = Field(
        None, description="resource id of the user-assigned identity that may pull from the registry (AcrPull)"
    )
    aci_dns_prefix: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,20}$")] = Field(
        "driftloop", description="before model and version in the DNS label; the region must not know the label yet"
    )
    azure_endpoint: str = Field(
        "https://management.azure.com", description="Azure Resource Manager; other clouds differ"
    )
    azure_ca: Path | None = Field(
        None, description="PEM file of the authority of azure_endpoint, if it is not a public one"
    )
    health_port: int = Field(0, ge=0, le=65535, description="port of a process's /live, /ready, /metrics; 0: none")
    health_host: str = Field("127.0.0.1", description="address that they listen on")

    monitor_host: str = Field("127.0.0.1", description="address of the monitor's page; another one needs a token")
    monitor_port: int = Field(0, ge=0, le=65535, description="its port; 0: the stack chooses a free one and keeps it")
    monitor_token: SecretStr | None = Field(None, description="what one must know to see the page, at least 16 letters")
    monitor_names: str = Field("", description="host names, by commas, that the page may be asked for under")
    monitor_tls_cert: Path | None = Field(None, description="PEM file of the page's certificate chain")
    monitor_tls_key: Path | None = Field(None, description="PEM file of its key")
    monitor_plain: bool = Field(False, description="true: no TLS although not on loopback; a proxy before it has it")
    monitor_actions: bool = Field(False, description="true: the page may replay dead letters")
    monitor_groups: str | None = Field(
        None, description="regular expression of groups to watch besides ours; unset: all"
    )
    monitor_seconds: float = Field(2, ge=0.5, description="time between two looks at lag")
    monitor_history_days: float = Field(7, gt=0, description="how long the monitor keeps its history")
    processes: str = Field("", description="name=http://host:port,… of processes that the stack does not run itself")
    device_statistics: int = Field(50, ge=0, description="devices whose window statistics an agent shows; 0: none")

    def topic(self, topic: Topic) -> str:
        """The topic's name on this cluster."""
        return f"{self.namespace}{topic.name}"

    @property
    def trusted_folder(self) -> Path:
        """Where the public keys are that models are accepted from."""
        return self.trusted_keys or self.home / "keys" / "trusted"

    @property
    def monitor_url(self) -> str:
        """The address of the monitor's page, as seen from this machine."""
        host = "127.0.0.1" if self.monitor_host in ("0.0.0.0", "::") else self.monitor_host  # noqa: S104
        return (
            f"http{'s' if self.monitor_tls_cert else ''}://{f'[{host}]' if ':' in host else host}:{self.monitor_port}"
        )

    @property
    def router_url(self) -> str:
        """The stable address of the deployed model."""
        return f"http://{self.router_host}:{self.router_port}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return _THEIR_NAMES.get(name, f"DRIFTLOOP_{name.upper()}")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, `.env` and a running stack's addresses.

    Raises UserError in one line that names the variable and what is wrong with it.
    """
    try:
        home = Settings(_env_file=".env", **overrides).home  # type: ignore[call-arg]  # pydantic-settings' own argument
        # A container's secrets are files, each named as its variable.
        secrets = SECRETS if SECRETS.is_dir() else None
        return Settings(_env_file=(home / STACK_ENV, ".env"), _secrets_dir=secrets, **overrides)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        known = name if name.upper().startswith(("DRIFTLOOP_", "MLFLOW_", "AZURE_")) else variable(name)
        raise UserError(
            f"{known.upper()}={first.get('input')!r}: {first['msg']}; correct it in the environment or in .env"
        ) from None
