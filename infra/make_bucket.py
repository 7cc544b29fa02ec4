"""Create a bucket if missing: python infra/make_bucket.py NAME (address and login: AWS_…)."""

import sys

import boto3

s3 = boto3.client("s3")
name = sys.argv[1]
if name not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
    s3.create_bucket(Bucket=name)
