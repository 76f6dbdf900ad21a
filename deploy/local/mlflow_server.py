"""MLflow's tracking server in one process: `python -P -m deploy.local.mlflow_server --port N`, run in its folder.

`mlflow server` imports MLflow twice, in itself and in the uvicorn that it starts, and keeps both: 6.6 s and 510 MB
where this takes 3.3 s and 260 MB (2 cores, a fresh SQLite file). The names below are MLflow's own; its version is
pinned.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deploy.local.programs import Program


def program(home: Path, *, port: int) -> Program:
    """The server on SQLite, with artifacts that it serves itself, below `<home>/mlflow`."""
    folder = home / "mlflow"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    return Program(
        name="mlflow",
        command=[sys.executable, "-P", "-m", "deploy.local.mlflow_server", "--port", str(port)],
        environment={
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        directory=str(folder),
        live=f"{url}/health",
        ready=f"{url}/health",
        address=url,
    )


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port

    import uvicorn
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import _UVICORN_LOG_CONFIG
    from mlflow.server.constants import (
        ARTIFACT_ROOT_ENV_VAR,
        ARTIFACTS_DESTINATION_ENV_VAR,
        BACKEND_STORE_URI_ENV_VAR,
        REGISTRY_STORE_URI_ENV_VAR,
        SERVE_ARTIFACTS_ENV_VAR,
    )
    from mlflow.server.handlers import initialize_backend_stores

    database, root = "sqlite:///mlflow.db", "mlflow-artifacts:/"
    os.environ |= {
        _MLFLOW_SGI_NAME.name: "uvicorn",
        BACKEND_STORE_URI_ENV_VAR: database,
        REGISTRY_STORE_URI_ENV_VAR: database,
        ARTIFACT_ROOT_ENV_VAR: root,
        SERVE_ARTIFACTS_ENV_VAR: "true",
        ARTIFACTS_DESTINATION_ENV_VAR: Path("artifacts").resolve().as_uri(),
    }
    initialize_backend_stores(database, database, root)  # so that /health is not green before the tables are there
    uvicorn.run(
        "mlflow.server.fastapi_app:app",
        host="127.0.0.1",
        port=port,
        log_config=str(_UVICORN_LOG_CONFIG),
        access_log=False,  # a line for each probe would push what matters out of the log
    )


if __name__ == "__main__":
    main()
