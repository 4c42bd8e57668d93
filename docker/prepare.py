"""Create the missing buckets of an S3-compatible store: python docker/prepare.py NAME…

Tries for about a minute until the store answers.
URL and credentials: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import sys

import boto3
from botocore.config import Config

# Waits 1, 2, 4, … seconds, at most 20, each times a random share.
RETRIES = Config(retries={"mode": "standard", "max_attempts": 10})


def main(names: list[str]) -> None:
    """Create every bucket that is missing."""
    store = boto3.client("s3", config=RETRIES)
    existing = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in names:
        if name not in existing:
            store.create_bucket(Bucket=name)
        print(f"{name}: {'existed' if name in existing else 'created'}")


if __name__ == "__main__":
    main(sys.argv[1:])
