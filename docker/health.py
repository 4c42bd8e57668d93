"""Asks a server a real question: exit status 0 where it answers.

python docker/health.py prefect|mlflow URL

Names and passwords are those of a client: PREFECT_API_AUTH_STRING, MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD. `/health` would answer too where the database does not.
"""

import base64
import json
import os
import sys
import urllib.request

QUESTIONS = {
    "prefect": ("/api/flows/count", {}),
    "mlflow": ("/api/2.0/mlflow/experiments/search", {"max_results": 1}),
}


def credentials(name: str) -> str:
    """Return `name:password` of a service, empty where it has none."""
    if name == "prefect":
        return os.environ.get("PREFECT_API_AUTH_STRING", "")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    return f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}" if user else ""


def main(name: str, url: str) -> None:
    """Ask, and raise where there is no answer."""
    path, question = QUESTIONS[name]
    headers = {"Content-Type": "application/json"}
    if secret := credentials(name):
        headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
    request = urllib.request.Request(url + path, json.dumps(question).encode(), headers)  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        json.load(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
