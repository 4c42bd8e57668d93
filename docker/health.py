"""Health check of a server: python docker/health.py prefect|mlflow URL

Exits with 0 if the server answers a query that needs its database; `/health` answers without it.
Credentials are those of a client: PREFECT_API_AUTH_STRING, MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD.
"""

import sys

from longred.services.prefect_api import request_json

QUERIES = {
    "prefect": ("/api/flows/count", {}),
    "mlflow": ("/api/2.0/mlflow/experiments/search", {"max_results": 1}),
}


def main(name: str, url: str) -> None:
    """Send the query; raise if there is no answer."""
    path, query = QUERIES[name]
    request_json(url + path, query, is_prefect=name == "prefect", seconds=10)


if __name__ == "__main__":
    main(*sys.argv[1:])
