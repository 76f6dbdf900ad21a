"""Settings: what a person sets comes first, a mistake is one line that says where, secrets never print."""

import os

import pytest

from schemas.errors import UserError
from schemas.settings import STACK_ENV, load_settings
from schemas.topology import ACTIVITY


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder and an environment without any of our variables."""
    for name in list(os.environ):
        if name.upper().startswith(("DRIFTLOOP_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leave(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_nothing_has_to_be_set():
    """`make demo` is the first thing that people try."""
    settings = load_settings()
    assert settings.kafka_bootstrap is None
    assert settings.topic(ACTIVITY) == "activity"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DRIFTLOOP_ROUTER_PORT", "eighty"),
        ("DRIFTLOOP_ROUTER_PORT", "65536"),
        ("DRIFTLOOP_MODEL", "Activity Model"),
        ("DRIFTLOOP_MODEL", "two\nlines"),
        ("DRIFTLOOP_LOG_LEVEL", "loud"),
        ("DRIFTLOOP_KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("DRIFTLOOP_NAMESPACE", "team-a"),
        ("DRIFTLOOP_PROMOTE_MARGIN", "2"),
        ("DRIFTLOOP_RECENT_ACTIVITIES", "7"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_variable(monkeypatch, variable, value):
    """It is read in a container's log, where a stack trace hides it."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as error:
        load_settings()
    assert str(error.value).startswith(f"{variable}={value!r}: ")
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__


def test_a_bad_setting_in_dot_env_names_the_variable_too(folder):
    """Most people never touch the environment itself."""
    leave(folder, ".env", "DRIFTLOOP_ROUTER_PORT=eighty")
    with pytest.raises(UserError, match=r"^DRIFTLOOP_ROUTER_PORT='eighty'"):
        load_settings()


@pytest.mark.parametrize(
    ("argument", "variable"), [("model", "DRIFTLOOP_MODEL"), ("mlflow_tracking_uri", "MLFLOW_TRACKING_URI")]
)
def test_a_bad_argument_names_the_variable_that_it_stands_for(argument, variable):
    """A command's option and its variable are one setting with one name."""
    with pytest.raises(UserError, match=f"^{variable}=5: "):
        load_settings(**{argument: 5})


@pytest.mark.parametrize("variable", ["DRIFTLOOP_KAFKA_BOOTSTRAP", "MLFLOW_TRACKING_URI"])
def test_the_environment_wins_over_dot_env_and_dot_env_over_a_running_stack(folder, monkeypatch, variable):
    """A forgotten stack must not swallow the readings that are meant for a person's own cluster."""
    field = variable.removeprefix("DRIFTLOOP_").lower()
    leave(folder, f".driftloop/{STACK_ENV}", f"{variable}=stack")
    assert getattr(load_settings(), field) == "stack"
    leave(folder, ".env", f"{variable}=dot-env")
    assert getattr(load_settings(), field) == "dot-env"
    monkeypatch.setenv(variable, "environment")
    assert getattr(load_settings(), field) == "environment"
    assert getattr(load_settings(**{field: "argument"}), field) == "argument"


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "DRIFTLOOP_MLFLOW_TRACKING_URI"])
@pytest.mark.parametrize("of_stack", ["MLFLOW_TRACKING_URI", "DRIFTLOOP_MLFLOW_TRACKING_URI"])
def test_mlflow_s_address_goes_by_its_own_name_or_ours(folder, monkeypatch, variable, of_stack):
    """Whoever uses MLflow has its variable set already; under either name a person's comes before the stack's."""
    leave(folder, f".driftloop/{STACK_ENV}", f"{of_stack}=stack")
    monkeypatch.setenv(variable, "environment")
    assert load_settings().mlflow_tracking_uri == "environment"


@pytest.mark.parametrize("where", ["argument", "environment", "dot-env"])
def test_a_stack_is_found_in_whatever_home_was_chosen(folder, monkeypatch, where):
    """Two stacks on a machine have two homes; a command must talk to the one it was pointed at."""
    leave(folder, f"elsewhere/{STACK_ENV}", "DRIFTLOOP_KAFKA_BOOTSTRAP=elsewhere")
    leave(folder, f".driftloop/{STACK_ENV}", "DRIFTLOOP_KAFKA_BOOTSTRAP=default")
    chosen = {}
    if where == "argument":
        chosen = {"home": folder / "elsewhere"}
    elif where == "environment":
        monkeypatch.setenv("DRIFTLOOP_HOME", "elsewhere")
    else:
        leave(folder, ".env", "DRIFTLOOP_HOME=elsewhere")
    assert load_settings(**chosen).kafka_bootstrap == "elsewhere"


def test_a_secret_never_prints(monkeypatch):
    """Settings end up in logs, in `config show` and in bug reports."""
    monkeypatch.setenv("DRIFTLOOP_KAFKA_SASL_PASSWORD", "hunter2")
    settings = load_settings()
    assert settings.kafka_sasl_password.get_secret_value() == "hunter2"
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "hunter2" not in text


def test_a_secret_does_not_print_when_another_setting_is_bad(monkeypatch):
    """The error quotes what is wrong, and nothing else."""
    monkeypatch.setenv("DRIFTLOOP_KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("DRIFTLOOP_ROUTER_PORT", "eighty")
    with pytest.raises(UserError) as error:
        load_settings()
    assert "hunter2" not in str(error.value)


def test_settings_in_force_cannot_be_changed():
    """What `config show` printed stays true."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().model = "other"


def test_a_namespace_stands_before_every_topic(monkeypatch):
    """Several loops share a Kafka without reading each other's events."""
    monkeypatch.setenv("DRIFTLOOP_NAMESPACE", "team-a.")
    assert load_settings().topic(ACTIVITY) == "team-a.activity"


def test_every_setting_says_what_it_is_for():
    """`config show` is made of these texts."""
    assert [name for name, field in type(load_settings()).model_fields.items() if not field.description] == []
