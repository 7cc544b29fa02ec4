# Stands in for docker.io/library/postgres:17: Debian's PostgreSQL, set up by the same variables.
FROM docker.io/library/python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/
ENV PGDATA=/var/lib/postgresql/data
COPY tests/images/postgres.sh /
CMD ["sh", "/postgres.sh"]
