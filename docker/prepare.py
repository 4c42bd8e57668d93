"""Makes the buckets of an S3-compatible store that are not there: python docker/prepare.py NAME…

Where and who: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import sys

import boto3


def main(names: list[str]) -> None:
    """Make every bucket that is missing."""
    store = boto3.client("s3")
    there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            store.create_bucket(Bucket=name)
        print(f"{name}: {'was there' if name in there else 'made'}")


if __name__ == "__main__":
    main(sys.argv[1:])
