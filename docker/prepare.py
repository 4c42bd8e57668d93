"""Create the missing buckets of an S3-compatible store: python docker/prepare.py NAME…

URL and credentials: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import sys

import boto3


def main(names: list[str]) -> None:
    """Create every bucket that is missing."""
    store = boto3.client("s3")
    existing = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in names:
        if name not in existing:
            store.create_bucket(Bucket=name)
        print(f"{name}: {'existed' if name in existing else 'created'}")


if __name__ == "__main__":
    main(sys.argv[1:])
